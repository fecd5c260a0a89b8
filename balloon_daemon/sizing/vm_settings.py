"""How much of one VM's memory may be taken, and when: what an operator sets for it. Pure."""

from dataclasses import dataclass
from enum import Enum


class Profile(Enum):
    """The rules by which a VM's balloon is sized."""

    SEED = "seed"
    """ChromeOS's balloon policy and nothing else."""

    CAREFUL = "careful"
    """The same policy, but a guest in need gets its balloon back and is left alone for a time."""

    ADAPTIVE = "adaptive"
    """Sized by what the host needs and what the guest can spare, with the protection of
    ``CAREFUL``."""


@dataclass(frozen=True, slots=True)
class VmSettings:
    """One VM's settings.

    Attributes:
        floor_bytes: never leave the guest less memory than this; None: what the profile leaves.
            A careful VM without statistics, for example, keeps more (``terms``).
        ceiling_bytes: the balloon's greatest size; None: what the policy's maximum allows.
        priority: VMs of a higher priority are squeezed later, and get their memory back first.
        profile: the rules.
    """

    floor_bytes: int | None = None
    ceiling_bytes: int | None = None
    priority: int = 0
    profile: Profile = Profile.CAREFUL


CAREFUL = VmSettings()
"""The settings of each VM that is discovered, unless the configuration names another profile."""

SEED = VmSettings(profile=Profile.SEED)
"""The settings of each VM if balloond was started without a configuration file."""
