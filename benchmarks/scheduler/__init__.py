"""What the scheduler costs and how well it chooses.

`world` is a fleet under a virtual clock: the production scheduler in front of modelled engines, event after
event, without a process or a socket. `arrivals` says what it is asked, `scenarios` what is to be seen there;
`decisions` and `watching` measure processor time.
"""
