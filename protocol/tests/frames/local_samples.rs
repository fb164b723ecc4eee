//! One value of each message about links that stay on a machine.

use umbel_protocol::LinkProtocol;
use umbel_protocol::local::{LocalAnswer, LocalRequest};

use super::{Message, Sample};

/// The messages whose frames are kept.
pub(super) fn samples() -> Vec<Sample> {
    let request = LocalRequest { protocol: LinkProtocol::Push, port: 40_001 };
    let waiting = LocalAnswer::Waiting { socket: [0x50; 16], secret: ([0x70; 16], [0x71; 16]) };
    let answer = |name, message| Sample { name, message: Message::LocalAnswer(message) };
    vec![
        Sample { name: "local_request", message: Message::LocalRequest(request) },
        answer("local_declined", LocalAnswer::Declined),
        answer("local_waiting", waiting),
    ]
}
