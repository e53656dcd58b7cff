"""The sections of `bench gpu`: each measures one thing on a device, and lists what it found."""
