"""libseccomp's version, which pyseccomp does not offer."""

import ctypes


class _Version(ctypes.Structure):
    """struct scmp_version of libseccomp's seccomp.h."""

    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


def version() -> str:
    """The version of the library that is installed: ``2.5.4``.

    Raises:
        OSError: there is no libseccomp.
    """
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_version.restype = ctypes.POINTER(_Version)
    found = library.seccomp_version().contents
    return f"{found.major}.{found.minor}.{found.micro}"
