//! The names of the link protocols, what each allows, and the version of the software.

use std::fmt;

use crate::frame::Limits;

/// The version of this software, as announcements carry it.
pub const SOFTWARE: &str = env!("CARGO_PKG_VERSION");

/// What a link between two peers is for.
///
/// The number in a name is the version of its messages; a change that old readers cannot follow
/// takes a new name, and peers that do not share one do not understand each other at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkProtocol {
    /// A client's sessions on one server.
    Session,
    /// Steps from one server of a route to the next.
    Push,
    /// Questions about which servers there are.
    Directory,
    /// A trainer's adapter on one server.
    Training,
    /// What a member of a run says to another.
    Averaging,
    /// An adapter that somebody has published.
    Adapter,
    /// The question for a link that does not leave the machine.
    Local,
}

/// The two ends of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Who opened it.
    Opener,
    /// Who accepted it.
    Acceptor,
}

/// The header of a step has at most 64 hops of about 80 bytes; the rest is room to grow.
const STEP_HEADER_BYTES_MAX: u32 = 64 << 10;

/// 512 tokens of prefill at a hidden size of 16,384 in binary32 take 32 MiB; twice that.
pub(crate) const STEP_PAYLOAD_BYTES_MAX: u32 = 64 << 20;

/// One announcement, at most 4 KiB, and what is around it.
const QUESTION_HEADER_BYTES_MAX: u32 = 8 << 10;

/// 1,024 announcements, the most of an answer, of 2 KiB each; half a KiB is usual.
pub(crate) const ANSWER_HEADER_BYTES_MAX: u32 = 2 << 20;

/// An id and some numbers.
const ADAPTER_HEADER_BYTES_MAX: u32 = 1 << 10;

/// A part of an adapter's files, as [`PART_BYTES_MAX`](crate::published::PART_BYTES_MAX) has it.
const ADAPTER_PART_BYTES_MAX: u32 = 1 << 20;

/// The name of a protocol and a port, or two secrets.
const LOCAL_HEADER_BYTES_MAX: u32 = 128;

impl LinkProtocol {
    /// Every protocol.
    pub const ALL: [Self; 7] = [
        Self::Session,
        Self::Push,
        Self::Directory,
        Self::Training,
        Self::Averaging,
        Self::Adapter,
        Self::Local,
    ];

    /// The protocol with a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// The name that both ends agree on when a link is opened.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "/umbel/session/1",
            Self::Push => "/umbel/push/1",
            Self::Directory => "/umbel/directory/1",
            Self::Training => "/umbel/training/1",
            Self::Averaging => "/umbel/averaging/1",
            Self::Adapter => "/umbel/adapter/1",
            Self::Local => "/umbel/local/1",
        }
    }

    /// What a frame from the `speaker` of such a link may hold at most.
    #[must_use]
    pub const fn limits(self, speaker: Side) -> Limits {
        const STEPS: Limits = Limits {
            header_bytes_max: STEP_HEADER_BYTES_MAX,
            payload_bytes_max: STEP_PAYLOAD_BYTES_MAX,
        };
        match (self, speaker) {
            (Self::Session | Self::Training, Side::Opener | Side::Acceptor)
            | (Self::Push | Self::Averaging, Side::Opener) => STEPS,
            (Self::Push | Self::Averaging, Side::Acceptor) => {
                Limits { header_bytes_max: 0, payload_bytes_max: 0 }
            }
            // Who asks a peer to keep one sends it.
            (Self::Adapter, _) => Limits {
                header_bytes_max: ADAPTER_HEADER_BYTES_MAX,
                payload_bytes_max: ADAPTER_PART_BYTES_MAX,
            },
            (Self::Local, _) => {
                Limits { header_bytes_max: LOCAL_HEADER_BYTES_MAX, payload_bytes_max: 0 }
            }
            (Self::Directory, Side::Opener) => {
                Limits { header_bytes_max: QUESTION_HEADER_BYTES_MAX, payload_bytes_max: 0 }
            }
            (Self::Directory, Side::Acceptor) => {
                Limits { header_bytes_max: ANSWER_HEADER_BYTES_MAX, payload_bytes_max: 0 }
            }
        }
    }
}

impl fmt::Display for LinkProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Side {
    /// The end across.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Opener => Self::Acceptor,
            Self::Acceptor => Self::Opener,
        }
    }
}
