"""What a token costs a worker whose engine is a server over gRPC, against one whose engine is in its child.

Both engines do nothing but send tokens at a pace: the server a message for each sequence and step, as the
protocol of `smg-grpc-proto` has it, the child a message a step. What is measured is the processor time of the
process that receives them, which has the worker's engine and a sink that counts.
"""
