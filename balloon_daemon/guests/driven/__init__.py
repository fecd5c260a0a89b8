"""VMs whose balloon belongs to their own VMM, and is moved through the VMM's control interface."""
