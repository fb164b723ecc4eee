//! One value of each message that has to do with adapters: those of sessions, and those that are published.

use bytes::Bytes;
use umbel_protocol::inference::{
    AdapterPart, ClientMessage, OpenSession, ServerMessage, SessionAdapter,
};
use umbel_protocol::published::{AdapterAnswer, AdapterRequest, KeepAdapter, KeepRefusal, Keeping};
use umbel_protocol::training::{AdapterSettings, TargetModule};
use umbel_protocol::{AdapterId, SessionId, Tensor};

use super::{Message, Sample, open};

/// The messages whose frames are kept.
pub(super) fn samples(session: SessionId) -> Vec<Sample> {
    let client = |name, message| Sample { name, message: Message::Client(message) };
    let server = |name, message| Sample { name, message: Message::Server(message) };
    let opened = ServerMessage::Opened { session, tokens_max: 2_048, kept: None, adapter: true };
    let wanted = |offset| ServerMessage::AdapterWanted { session, offset };
    let id = AdapterId::from_bytes([0xad; 32]);
    let published = |name, message| Sample { name, message: Message::Published(message) };
    let bytes = Bytes::from_static(b"{}weights");
    vec![
        Sample {
            name: "adapter_request",
            message: Message::Adapter(AdapterRequest::Part { id, offset: 1 << 20 }),
        },
        Sample {
            name: "adapter_keep",
            message: Message::Adapter(AdapterRequest::Keep(KeepAdapter {
                id,
                config_bytes: 2,
                weights_bytes: 7,
                offset: 0,
                bytes: bytes.clone(),
            })),
        },
        published("adapter_keeping_send", AdapterAnswer::Keeping(Keeping::Send { offset: 9 })),
        published("adapter_keeping_kept", AdapterAnswer::Keeping(Keeping::Kept)),
        published(
            "adapter_keeping_refused",
            AdapterAnswer::Keeping(Keeping::Refused(KeepRefusal::ShareUsed)),
        ),
        published("adapter_unknown", AdapterAnswer::Unknown),
        published("adapter_part", AdapterAnswer::Part { config_bytes: 2, weights_bytes: 7, bytes }),
        client("client_open_adapted", ClientMessage::Open(open_adapted(session))),
        client("client_adapter", ClientMessage::Adapter(adapter_part(session))),
        server("server_opened_adapted", opened),
        server("server_adapter_wanted", wanted(Some(0))),
        server("server_adapter_awaited", wanted(None)),
    ]
}

pub(crate) fn open_adapted(session: SessionId) -> OpenSession {
    let settings = AdapterSettings {
        rank: 8,
        alpha: 16.0,
        rank_stabilized: true,
        dropout: 0.125,
        target_modules: vec![TargetModule::Query, TargetModule::Down],
        block_prompt_tokens: 0,
        weight_decomposed: false,
    };
    let id = AdapterId::from_bytes([0xad; 32]);
    OpenSession { adapter: Some(SessionAdapter { id, settings }), ..open(session) }
}

fn adapter_part(session: SessionId) -> AdapterPart {
    let values = Tensor::from_f32(vec![3], &[0.5, -2.0, 0.0]).expect("three values");
    AdapterPart { session, offset: 1 << 33, values }
}
