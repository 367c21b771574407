"""Linux that is not KVM: files, event descriptors, terminals."""
