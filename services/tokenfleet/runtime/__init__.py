"""What the service shells share: settings, lifecycle, telemetry, gRPC plumbing, links, sources."""
