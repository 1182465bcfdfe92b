//! How a container file is laid out, behind a trait: a later layout is another implementation, and files of both live
//! side by side, since each names its layout in its header page.
//!
//! Not here: the bytes of headers and trailers of layout 1 (see `extent`).

use crate::extent::{
    self, ExtentHeader, ExtentTrailer, HEADER_BYTES, PAGE_BYTES, Salt, TRAILER_BYTES, extent_bytes,
};

/// The layout of new containers.
pub const LAYOUT_CURRENT: u32 = 1;

/// The rules of one layout.
pub trait ContainerLayout: Send + Sync + std::fmt::Debug {
    /// Its number in container headers. Never reused.
    fn id(&self) -> u32;
    /// Where the first extent may begin.
    fn first_extent(&self) -> u64;
    /// Bytes of an extent with room for `reserved` bytes of data.
    fn extent_bytes(&self, reserved: u64) -> u64;
    /// Where data begins inside an extent.
    fn data_offset(&self) -> u64;
    /// Bytes of a header.
    fn header_bytes(&self) -> usize;
    /// Bytes at the end of an extent that hold the trailer.
    fn trailer_bytes(&self) -> usize;
    /// A header's bytes.
    fn encode_header(&self, header: &ExtentHeader, offset: u64, salt: &Salt) -> Vec<u8>;
    /// A header, if it is right.
    fn decode_header(&self, bytes: &[u8], offset: u64, salt: &Salt) -> Option<ExtentHeader>;
    /// A trailer's bytes.
    fn encode_trailer(&self, trailer: &ExtentTrailer, offset: u64, salt: &Salt) -> Vec<u8>;
    /// A trailer, if it is right.
    fn decode_trailer(&self, bytes: &[u8], offset: u64, salt: &Salt) -> Option<ExtentTrailer>;
}

/// The layout numbered `id`, if this program knows it.
pub fn layout(id: u32) -> Option<&'static dyn ContainerLayout> {
    static PACKED: Packed = Packed;
    (id == PACKED.id()).then_some(&PACKED as &dyn ContainerLayout)
}

/// Layout 1: two pages of container header and seal, then extents packed to pages.
#[derive(Debug)]
struct Packed;

impl ContainerLayout for Packed {
    fn id(&self) -> u32 {
        1
    }

    fn first_extent(&self) -> u64 {
        2 * PAGE_BYTES
    }

    fn extent_bytes(&self, reserved: u64) -> u64 {
        extent_bytes(reserved)
    }

    fn data_offset(&self) -> u64 {
        HEADER_BYTES as u64
    }

    fn header_bytes(&self) -> usize {
        HEADER_BYTES
    }

    fn trailer_bytes(&self) -> usize {
        TRAILER_BYTES
    }

    fn encode_header(&self, header: &ExtentHeader, offset: u64, salt: &Salt) -> Vec<u8> {
        header.encode(offset, salt).to_vec()
    }

    fn decode_header(&self, bytes: &[u8], offset: u64, salt: &Salt) -> Option<ExtentHeader> {
        ExtentHeader::decode(bytes, offset, salt)
    }

    fn encode_trailer(&self, trailer: &ExtentTrailer, offset: u64, salt: &Salt) -> Vec<u8> {
        trailer.encode(offset, salt).to_vec()
    }

    fn decode_trailer(&self, bytes: &[u8], offset: u64, salt: &Salt) -> Option<ExtentTrailer> {
        extent::ExtentTrailer::decode(bytes, offset, salt)
    }
}
