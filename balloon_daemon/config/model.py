"""The daemon's settings, as values; the configuration file and the command line fill them in."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from balloon_daemon.config.entries import Key, Origin
from balloon_daemon.config.metrics_place import MetricsPlace
from balloon_daemon.config.vms import Discover, Kind, VmConfig
from balloon_daemon.linux.directories import is_private
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.vm_settings import Profile, VmSettings

POLICY_FILE = "balloon_device.policy"


def default_socket() -> Path:
    """The default socket path, in a directory where no other user may write.

    For root it is in /run/balloond. For another user it is in $XDG_RUNTIME_DIR; where that is
    unset (as by sudo and cron), in /run/user/UID if that is private; else in
    ``fallback_directory``.
    """
    if os.geteuid() == 0:
        return Path("/run/balloond/balloond.sock")
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    runtime = Path(named if os.path.isabs(named) else f"/run/user/{os.geteuid()}")
    usable = os.path.isabs(named) or is_private(runtime)
    return (runtime if usable else fallback_directory()) / "balloond.sock"


def fallback_directory() -> Path:
    """The directory for a user without a runtime directory.

    It is in /tmp, where another user could have made it: so it has to be checked before use.
    """
    return Path(f"/tmp/balloond-{os.geteuid()}")


def default_policy_file() -> Path:
    """The shipped seccomp policy: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "policies" / POLICY_FILE
    return installed if installed.exists() else package.parent / "policies" / POLICY_FILE


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a controller.

    Attributes:
        socket: path of the vhost-user socket for VMs that no ``VmConfig`` names; each connection
            to it is one VM. None: there is no such socket.
        vm_mem_bytes: size of a VM at that socket; None: the size of its memory table.
        policy_file: the device's seccomp policy.
        low_mem_dir: directory of the files ``available`` and ``margin``; None: the host's own
            low-memory source.
        margin_bytes: with less available, memory is low; used in place of the low-memory source's
            margin.
        policy: the numbers of ChromeOS's balloon policy.
        poll_s: how often to read the low-memory source while the kernel cannot wake balloond, in
            seconds.
        page_reporting: let guests report free memory (VIRTIO_BALLOON_F_REPORTING).
        vms: the VMs that the configuration names.
        discover: where more VMs are found.
        profile: the rules by which the balloons of the VMs at ``socket`` are sized.
        found_profile: the same for VMs that are discovered.
        unprofiled: the named VMs for which the configuration names no profile.
        is_default_socket: True: ``socket`` is the default path: it is opened because neither a
            socket, nor a VM, nor a place to discover VMs was named.
        api: the path of the API's socket; ``none``: there is no API; None: the default path of a
            service, and no API if balloond runs as none.
        dry_run: decide, and change no VM's balloon.
        history: the SQLite file of the last day; None: none is kept.
        record: where to write a trace of what the sizing policy sees and decides; None: nowhere.
        metrics: where metrics go in addition to the API's socket; None: nowhere.
    """

    socket: Path | None = field(default_factory=default_socket)
    vm_mem_bytes: int | None = None
    policy_file: Path = field(default_factory=default_policy_file)
    low_mem_dir: Path | None = None
    margin_bytes: int | None = None
    policy: PolicySettings = field(default_factory=PolicySettings)
    poll_s: float = 1.0
    page_reporting: bool = True
    vms: tuple[VmConfig, ...] = ()
    discover: Discover = field(default_factory=Discover)
    profile: Profile = Profile.SEED
    found_profile: Profile = Profile.CAREFUL
    unprofiled: frozenset[str] = field(default=frozenset(), compare=False)
    is_default_socket: bool = False
    api: Path | None = None
    dry_run: bool = False
    history: Path | None = None
    record: Path | None = None
    metrics: MetricsPlace | None = None

    def with_profile(self, profile: Profile) -> "Config":
        """The same settings with another profile of all VMs that name none."""
        vms = tuple(
            vm._replace(settings=replace(vm.settings, profile=profile))
            if vm.name in self.unprofiled
            else vm
            for vm in self.vms
        )
        return replace(self, profile=profile, found_profile=profile, vms=vms)

    @property
    def found_settings(self) -> VmSettings:
        """The settings of VMs that are discovered."""
        return VmSettings(profile=self.found_profile)

    @property
    def own_sockets(self) -> tuple[VmConfig, ...]:
        """All vhost-user sockets, each with the settings of the VMs that connect to it.

        ``socket`` is the first; its name is "", and any number of VMs may connect to it.
        """
        named = tuple(vm for vm in self.vms if vm.kind is Kind.VHOST_USER)
        if self.socket is None:
            return named
        settings = VmSettings(profile=self.profile)
        path, size = str(self.socket), self.vm_mem_bytes
        return (VmConfig("", Kind.VHOST_USER, path, settings, size), *named)

    @property
    def others(self) -> tuple[VmConfig, ...]:
        """The named VMs whose balloon is their own VMM's."""
        return tuple(vm for vm in self.vms if vm.kind is not Kind.VHOST_USER)

    @property
    def main_socket(self) -> Path:
        """The path whose name, with different endings, the keeper's socket and balloond's other
        files have. It does not depend on the VMs that are named, nor on whether a socket is opened
        there."""
        return default_socket() if self.socket is None else self.socket

    @property
    def bases_socket(self) -> Path:
        """The path whose name, with other endings, the files of driven VMs' bases have.

        A base is the balloon that a VM had before balloond changed it. From its file, balloond
        knows how much of a balloon an earlier balloond has taken, and gives that back at first.
        For a dry run the path is another one, where no such file is ever written: so a dry run
        takes every balloon that it finds for a base, and leaves it as it is.
        """
        main = self.main_socket
        return main.with_name(f"{main.name}.dry-run") if self.dry_run else main


class FromFiles(NamedTuple):
    """The settings that configuration files make.

    Attributes:
        config: the settings.
        origins: where each key was set; the last place of several counts. Empty unless they were
            asked for.
    """

    config: Config
    origins: Mapping[Key, tuple[Origin, ...]]
