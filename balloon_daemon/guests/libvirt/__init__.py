"""VMs of libvirt's: the balloon is moved through libvirt, by a process that can be killed."""
