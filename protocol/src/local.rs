//! Asking a peer on the same machine for a link that does not leave it.
//!
//! Both peers are who they say, since they speak on a connection that has proved it. The answer names a
//! Unix socket, which only a process of the same machine can reach, and what is to be said there.

use bytes::Bytes;

use crate::error::ProtocolViolation;
use crate::frame::Frame;
use crate::generated as v1;
use crate::{LinkProtocol, wire};

/// A link that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalRequest {
    /// What for.
    pub protocol: LinkProtocol,
    /// The port of the socket that was listened on for the connection, as the asker sees it.
    pub port: u16,
}

/// What is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LocalAnswer {
    /// The link goes over the connection, as every other.
    Declined,
    /// A socket waits for it.
    Waiting {
        /// The socket's name, in the abstract namespace, is `umbel-link-` and these in hexadecimal digits.
        socket: [u8; 16],
        /// What the asker says on it, and what it is answered.
        secret: ([u8; 16], [u8; 16]),
    },
}

impl LocalRequest {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        let Self { protocol, port } = self;
        wire::header_only(&v1::LocalRequest {
            protocol: protocol.name().to_owned(),
            port: port.into(),
        })
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        const MESSAGE: &str = "local request";
        wire::no_payload(&frame.payload, MESSAGE)?;
        let v1::LocalRequest { protocol, port } = wire::decode_header(frame.header, MESSAGE)?;
        let out_of_bounds = |field| ProtocolViolation::OutOfBounds { field };
        Ok(Self {
            protocol: LinkProtocol::named(&protocol).ok_or(out_of_bounds("the protocol"))?,
            port: port.try_into().map_err(|_| out_of_bounds("the port"))?,
        })
    }
}

impl LocalAnswer {
    /// The message as it travels.
    #[must_use]
    pub fn encode(self) -> Frame {
        wire::header_only(&match self {
            Self::Declined => v1::LocalAnswer::default(),
            Self::Waiting { socket, secret: (said, answered) } => v1::LocalAnswer {
                socket: Bytes::copy_from_slice(&socket),
                token: [said, answered].concat().into(),
            },
        })
    }

    /// The message in a frame.
    ///
    /// # Errors
    /// [`ProtocolViolation`] where there is none that makes sense.
    pub fn decode(frame: Frame) -> Result<Self, ProtocolViolation> {
        const MESSAGE: &str = "local answer";
        wire::no_payload(&frame.payload, MESSAGE)?;
        let v1::LocalAnswer { socket, token } = wire::decode_header(frame.header, MESSAGE)?;
        if socket.is_empty() && token.is_empty() {
            return Ok(Self::Declined);
        }
        let token: [u8; 32] = wire::array(&token, "the token")?;
        let half = |part| wire::array(part, "half a token");
        let secret = (half(&token[..16])?, half(&token[16..])?);
        Ok(Self::Waiting { socket: wire::array(&socket, "the socket")?, secret })
    }
}

/// Without the secret.
impl std::fmt::Debug for LocalAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Declined => "Declined",
            Self::Waiting { .. } => "Waiting",
        })
    }
}
