"""The VMM's messages before a driver may look for its device.

Runs in the fake guest's process and in tests. Source: the order of QEMU 11.1's and crosvm's
messages as recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from balloon_daemon.fake_guest.requests import Requests, decoded
from balloon_daemon.fake_guest.styles import Style, Vring
from balloon_daemon.fake_guest.wire import BackendError
from balloon_daemon.vhost_user.messages import (
    U64,
    VHOST_USER_F_PROTOCOL_FEATURES,
    FrontendRequest,
    ProtocolFeature,
    decode_u64,
)

_Q = FrontendRequest


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The result of the negotiation.

    Attributes:
        features: all features that the back-end offers, virtio's and vhost-user's.
        protocol_features: those that both ends use.
    """

    features: int
    protocol_features: ProtocolFeature


NOTHING_YET = Negotiated(0, ProtocolFeature(0))


def negotiate(requests: Requests, style: Style, vrings: Sequence[Vring]) -> Negotiated:
    """Sends everything up to the moment when the guest may look for a driver.

    Raises:
        BackendError: a feature is missing without which this VMM gives up.
        OSError: no answer in time, or the back-end hung up.
    """
    if style.whole_config:
        return _like_qemu(requests, style, vrings)
    return _like_crosvm(requests, style, vrings)


def _like_qemu(requests: Requests, style: Style, vrings: Sequence[Vring]) -> Negotiated:
    _features(requests)
    chosen = _choose_protocol_features(requests, style)
    _check_queue_num(requests, chosen, len(vrings))
    if chosen & ProtocolFeature.CONFIGURE_MEM_SLOTS:
        decoded(decode_u64, requests.ask(_Q.GET_MAX_MEM_SLOTS))
    if chosen & ProtocolFeature.BACKEND_REQ:
        requests.open_channel()
    requests.tell(_Q.SET_OWNER)
    features = _features(requests)
    for index, vring in enumerate(vrings):
        requests.tell(_Q.SET_VRING_CALL, U64.pack(index), [vring.call])
        requests.tell(_Q.SET_VRING_ERR, U64.pack(index), [vring.err])
    return Negotiated(features, chosen)


def _like_crosvm(requests: Requests, style: Style, vrings: Sequence[Vring]) -> Negotiated:
    requests.tell(_Q.SET_OWNER)
    features = _features(requests)
    requests.tell(_Q.SET_FEATURES, U64.pack(VHOST_USER_F_PROTOCOL_FEATURES))
    chosen = _choose_protocol_features(requests, style)
    if chosen & ProtocolFeature.BACKEND_REQ:
        requests.open_channel()
    _check_queue_num(requests, chosen, len(vrings))
    return Negotiated(features, chosen)


def _features(requests: Requests) -> int:
    features = decoded(decode_u64, requests.ask(_Q.GET_FEATURES))
    if not features & VHOST_USER_F_PROTOCOL_FEATURES:
        raise BackendError("no protocol features offered, so no config space")
    return features


def _choose_protocol_features(requests: Requests, style: Style) -> ProtocolFeature:
    offered = ProtocolFeature(decoded(decode_u64, requests.ask(_Q.GET_PROTOCOL_FEATURES)))
    chosen = offered & style.protocol_features
    if not chosen & ProtocolFeature.CONFIG:
        raise BackendError("protocol feature CONFIG is not offered: QEMU needs it")
    # Set `acks` only after this message, which brings REPLY_ACK into effect: the back-end does not
    # yet acknowledge the message itself.
    requests.tell(_Q.SET_PROTOCOL_FEATURES, U64.pack(chosen))
    requests.acks = bool(chosen & ProtocolFeature.REPLY_ACK)
    return chosen


def _check_queue_num(requests: Requests, chosen: ProtocolFeature, num_vqs: int) -> None:
    if chosen & ProtocolFeature.MQ:
        queues = decoded(decode_u64, requests.ask(_Q.GET_QUEUE_NUM))
        if queues < num_vqs:
            raise BackendError(f"{queues} queues, this VMM has {num_vqs}")
