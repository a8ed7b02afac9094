"""What has to be put right in an environment with vLLM's CPU build, and which machines have such a build."""
