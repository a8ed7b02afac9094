"""The chart on a real cluster: `make e2e-k8s KUBECONFIG=…`."""
