//! What a disk holds after a crash: reads container files where the index does not know them.
//!
//! Every page boundary outside known extents of an open container is looked at. A header that is right names its
//! trailer; if trailer, chunk list, digest and *all* chunks are right too, the block is indexed: it may have been
//! acknowledged. Everything else that is not zero is *suspect*: torn, damaged, or of a write that never ended. It is
//! counted and kept, for only OM knows whether somebody was promised those bytes. A suspect whose header can be read is
//! known by its id, and goes when OM deletes that id.
//!
//! A page that cannot be read is suspect too; a file with many of them is on a disk that is going.
//!
//! The same function rebuilds an index from files alone.
//!
//! Invariants:
//! * A block is found only with every byte right.
//! * Nothing is punched or overwritten here.
//!
//! Not here: sealing what was open and replaying deletions (`open`).

use std::collections::BTreeMap;
use std::io;

use wire::chunk::{BlockDigest, chunk_count, chunk_crc};
use wire::ids::LocalId;
use wire::limits::CHUNK_BYTES;

use crate::extent::{ContainerHeader, ExtentHeader, PAGE_BYTES, decode_crcs};
use crate::index::Extent;
use crate::layout::ContainerLayout;
use platform::disk::BlockFile;

/// Bytes looked at in one read.
const WINDOW_BYTES: usize = 1 << 20;

/// Pages of one file that cannot be read before the disk is given up.
const UNREADABLE_PAGES_MAX: u64 = 256;

/// What a look at a container file found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Whole blocks, by id.
    pub found: BTreeMap<LocalId, Extent>,
    /// Pages that are not zero and not part of a whole block.
    pub suspect_pages: u64,
    /// Of these, extents whose header can be read: id, place and size.
    pub suspects: Vec<(LocalId, Extent)>,
    /// Pages, or extents, that the disk did not read.
    pub unreadable: u64,
    /// Where the last page that is not zero ends; at least the end of the known extents.
    pub end: u64,
}

/// Looks at `file` from `from` to its end, except at `known` extents (offset and size, ascending).
pub fn scan(
    file: &dyn BlockFile,
    header: &ContainerHeader,
    layout: &dyn ContainerLayout,
    from: u64,
    known: &[(u64, u64)],
) -> io::Result<Scan> {
    let file_end = file.length()?;
    let mut scan = Scan::default();
    let mut known = known.iter().copied().peekable();
    let mut offset = from.max(layout.first_extent()).next_multiple_of(PAGE_BYTES);
    scan.end = offset;
    let mut suspect_end = 0;
    let mut window = Window { start: 0, bytes: Vec::new() };
    while offset < file_end {
        // Behind us, or here: step over.
        while let Some((start, size)) = known.next_if(|(start, _)| *start <= offset) {
            offset = offset.max(start + size);
            scan.end = scan.end.max(offset);
        }
        let gap_end = known.peek().map_or(file_end, |(start, _)| (*start).min(file_end));
        if offset >= gap_end {
            if offset >= file_end {
                break;
            }
            continue;
        }
        let page = match window.page(file, offset) {
            Ok(page) => page,
            Err(error) => {
                scan.note_unreadable(error)?;
                scan.suspect_pages += 1;
                offset += PAGE_BYTES;
                scan.end = scan.end.max(offset);
                continue;
            }
        };
        if page.iter().all(|byte| *byte == 0) {
            offset += PAGE_BYTES;
            continue;
        }
        // The place is one write's for ever: nothing else begins inside a suspect's.
        let candidate = layout.decode_header(page, offset, &header.salt).filter(|extent| {
            offset >= suspect_end
                && is_of(extent, header)
                && offset + layout.extent_bytes(extent.reserved) <= gap_end
        });
        let Some(extent) = candidate else {
            scan.suspect_pages += 1;
            offset += PAGE_BYTES;
            scan.end = scan.end.max(offset);
            continue;
        };
        let size = layout.extent_bytes(extent.reserved);
        let whole = read_whole(file, header, layout, &extent, offset).or_else(|error| {
            scan.note_unreadable(error)?;
            io::Result::Ok(None)
        })?;
        let local = extent.block.local;
        match whole {
            // The later one of two whole extents of an id: an earlier one was given up by its writer.
            Some(found) => {
                offset += size;
                if let Some(earlier) = scan.found.insert(local, found) {
                    scan.suspect_pages += earlier.size / PAGE_BYTES;
                    scan.suspects.push((local, earlier));
                }
            }
            None => {
                scan.suspects.push((local, Extent { offset, size, length: 0, digest: BlockDigest(0) }));
                scan.suspect_pages += 1;
                suspect_end = offset + size;
                offset += PAGE_BYTES;
            }
        }
        scan.end = scan.end.max(offset);
    }
    Ok(scan)
}

impl Scan {
    fn note_unreadable(&mut self, error: io::Error) -> io::Result<()> {
        self.unreadable += 1;
        if self.unreadable > UNREADABLE_PAGES_MAX { Err(error) } else { Ok(()) }
    }
}

fn is_of(extent: &ExtentHeader, header: &ContainerHeader) -> bool {
    extent.block.container == header.container && extent.generation == header.generation
}

/// The extent that `head` begins, if every byte of it is right.
pub(crate) fn read_whole(
    file: &dyn BlockFile,
    header: &ContainerHeader,
    layout: &dyn ContainerLayout,
    head: &ExtentHeader,
    offset: u64,
) -> io::Result<Option<Extent>> {
    let size = layout.extent_bytes(head.reserved);
    let trailer_at = offset + size - layout.trailer_bytes() as u64;
    let bytes = file.read_at(trailer_at, layout.trailer_bytes())?;
    let Some(trailer) =
        layout.decode_trailer(&bytes, offset, &header.salt).filter(|trailer| trailer.fits(head))
    else {
        return Ok(None);
    };
    let crcs_bytes = 4 * chunk_count(trailer.length) as usize;
    let crcs = decode_crcs(&file.read_at(trailer_at - crcs_bytes as u64, crcs_bytes)?);
    if BlockDigest::new(head.block, trailer.length, &crcs) != trailer.digest {
        return Ok(None);
    }
    let data = offset + layout.data_offset();
    for (number, crc) in crcs.iter().enumerate() {
        let at = number as u64 * CHUNK_BYTES as u64;
        let length = (trailer.length - at).min(CHUNK_BYTES as u64) as usize;
        let chunk = file.read_at(data + at, length)?;
        if chunk.len() != length || chunk_crc(&chunk) != *crc {
            return Ok(None);
        }
    }
    Ok(Some(Extent { offset, size, length: trailer.length, digest: trailer.digest }))
}

/// A piece of the file in memory, for pages read one after the other.
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn page(&mut self, file: &dyn BlockFile, offset: u64) -> io::Result<&[u8]> {
        let is_inside = offset >= self.start && offset < self.start + self.bytes.len() as u64;
        if !is_inside {
            self.bytes = match file.read_at(offset, WINDOW_BYTES) {
                Ok(bytes) => bytes,
                // One bad sector must not cost its neighbours.
                Err(_) => file.read_at(offset, PAGE_BYTES as usize)?,
            };
            self.start = offset;
        }
        let at = (offset - self.start) as usize;
        let end = (at + PAGE_BYTES as usize).min(self.bytes.len());
        Ok(self.bytes.get(at..end).unwrap_or(&[]))
    }
}
