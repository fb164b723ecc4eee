//! Digests of pages, one behind the other in one field.

use bytes::Bytes;

use crate::error::ProtocolViolation;
use crate::generated as v1;
use crate::inference::KeepPages;
use crate::prefix::{DIGEST_BYTES, PREFIX_PAGES_MAX, PageDigest};
use crate::{StepId, wire};

pub(super) fn to_wire(pages: &[PageDigest]) -> Bytes {
    let pages = pages.iter().take(PREFIX_PAGES_MAX);
    pages.flat_map(|page| *page.as_bytes()).collect()
}

pub(super) fn from_wire(bytes: &Bytes) -> Result<Vec<PageDigest>, ProtocolViolation> {
    const FIELD: &str = "the digests of pages";
    wire::at_most(FIELD, PREFIX_PAGES_MAX, bytes.len().div_ceil(DIGEST_BYTES))?;
    let digest = |bytes| Ok(PageDigest::from_bytes(wire::array(bytes, FIELD)?));
    bytes.chunks(DIGEST_BYTES).map(digest).collect()
}

impl From<KeepPages> for v1::KeepPages {
    fn from(keep: KeepPages) -> Self {
        Self {
            session: wire::session_bytes(keep.session),
            next_step: keep.next_step.0,
            first: keep.first,
            pages: to_wire(&keep.pages),
        }
    }
}

impl TryFrom<v1::KeepPages> for KeepPages {
    type Error = ProtocolViolation;

    fn try_from(keep: v1::KeepPages) -> Result<Self, ProtocolViolation> {
        Ok(Self {
            session: wire::session_id(&keep.session)?,
            next_step: StepId(keep.next_step),
            first: keep.first,
            pages: from_wire(&keep.pages)?,
        })
    }
}
