"""The folder for files that orthotune makes once and uses again, as a converted model."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

#: Names another folder.
VARIABLE = "ORTHOTUNE_CACHE"


def cache_folder() -> Path:
    """The cache of this user: ``$ORTHOTUNE_CACHE``, or where the operating system keeps caches.

    Returns:
        the folder; it may not exist yet.

    Example:
        >>> os.environ["ORTHOTUNE_CACHE"] = "/var/cache/models"  # doctest: +SKIP
        >>> cache_folder().as_posix()  # doctest: +SKIP
        '/var/cache/models'
    """
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("orthotune"))
