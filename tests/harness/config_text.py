"""Settings of a configuration file that is only text."""

from balloon_daemon.config.files import ConfigText
from balloon_daemon.config.model import Config
from balloon_daemon.config.toml import parse_texts


def parse_config(text: str, file: str) -> Config:
    """The settings in one file's text.

    Args:
        text: TOML 1.0.
        file: the file's name, for messages.

    Raises:
        ConfigFileError: it has mistakes.
    """
    return parse_texts([ConfigText(file, text)]).config
