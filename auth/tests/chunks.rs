//! Framed bodies: whole, cut at every byte, mutated, truncated, and of every bad kind.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use auth::{AuthError, CHUNK_LINE_BYTES_MAX, ChunkDecoder, TRAILER_LINE_BYTES_MAX, Trailer};
use bytes::Bytes;
use proptest::prelude::*;
use support::*;

const SIGNED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const SIGNED_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";
const UNSIGNED_TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
const MODES: [&str; 3] = [SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER];
const CRC: (&str, &str) = ("x-amz-checksum-crc32", "AAAAAA==");

type Outcome = Result<(Vec<u8>, Vec<Trailer>), AuthError>;

/// A body in `mode`, with a trailer where the mode has one, and the decoder its head asks for.
fn body(mode: &str, chunks: &[Vec<u8>]) -> (Vec<u8>, ChunkDecoder) {
    let len = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    let names: &[&str] = if mode == SIGNED { &[] } else { &[CRC.0] };
    let (head, seed) = chunked_head(mode, len, names);
    let mut framer = if mode == UNSIGNED_TRAILER { Framer::unsigned() } else { Framer::signed(&seed) };
    for chunk in chunks {
        framer.chunk(chunk);
    }
    framer.chunk(b"");
    if mode != SIGNED {
        framer.trailers(&[CRC]);
    }
    let decoder = authenticate(&head).unwrap().chunk_decoder(&head.headers).unwrap().unwrap();
    (framer.end(), decoder)
}

fn decode<'a>(mut decoder: ChunkDecoder, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut data = Vec::new();
    for piece in pieces {
        decoder.feed(Bytes::copy_from_slice(piece), &mut data)?;
    }
    assert!(data.iter().all(|slice| !slice.is_empty()));
    Ok((data.concat(), decoder.finish()?))
}

/// An unsigned decoder for `len` bytes with the trailer declared, for hand-written bodies.
fn unsigned_decoder(len: u64) -> ChunkDecoder {
    let (head, _) = chunked_head(UNSIGNED_TRAILER, len, &[CRC.0]);
    authenticate(&head).unwrap().chunk_decoder(&head.headers).unwrap().unwrap()
}

#[test]
fn every_mode_decodes_however_it_is_cut() {
    let chunks = [b"hello".to_vec(), vec![b'x'; 300], b"\r\n0\r\n".to_vec()];
    for mode in MODES {
        let (wire, _) = body(mode, &chunks);
        for cut in 0..=wire.len() {
            let (_, decoder) = body(mode, &chunks);
            let (data, trailers) = decode(decoder, [&wire[..cut], &wire[cut..]]).unwrap();
            assert_eq!(data, chunks.concat(), "{mode} cut at {cut}");
            assert_eq!(trailers.len(), usize::from(mode != SIGNED));
        }
        let (_, decoder) = body(mode, &chunks);
        assert_eq!(decode(decoder, wire.chunks(1)).unwrap().0, chunks.concat(), "{mode} byte by byte");
    }
}

#[test]
fn an_empty_body_is_a_final_chunk_alone() {
    for mode in MODES {
        let (wire, decoder) = body(mode, &[]);
        assert_eq!(decode(decoder, [&wire[..]]).unwrap().0, b"");
    }
}

#[test]
fn data_is_passed_on_without_copying() {
    let (wire, mut decoder) = body(SIGNED, &[vec![7; 1000]]);
    let wire = Bytes::from(wire);
    let mut data = Vec::new();
    decoder.feed(wire.clone(), &mut data).unwrap();
    assert_eq!(data.len(), 1);
    assert!(wire.as_ptr_range().contains(&data[0].as_ptr()));
}

#[test]
fn a_truncated_body_is_incomplete() {
    for mode in MODES {
        let (wire, _) = body(mode, &[b"some data".to_vec()]);
        for end in 0..wire.len() {
            let (_, decoder) = body(mode, &[b"some data".to_vec()]);
            let error = decode(decoder, [&wire[..end]]).unwrap_err();
            assert_eq!(error.s3_code(), "IncompleteBody", "{mode} ends at {end}");
        }
    }
}

#[test]
fn signed_chunks_cannot_be_reordered_dropped_or_repeated() {
    let chunk_len = b"3;chunk-signature=".len() + 64 + 2 + 3 + 2;
    let (wire, _) = body(SIGNED, &[b"one".to_vec(), b"two".to_vec()]);
    let (one, rest) = wire.split_at(chunk_len);
    let (two, end) = rest.split_at(chunk_len);
    for (pieces, code) in [
        (vec![two, one, end], "SignatureDoesNotMatch"),
        (vec![two, end], "SignatureDoesNotMatch"),
        (vec![one, one, end], "SignatureDoesNotMatch"),
        (vec![one, end], "SignatureDoesNotMatch"),
        (vec![one, two, two, end], "IncompleteBody"),
        (vec![one, two], "IncompleteBody"),
    ] {
        let (_, decoder) = body(SIGNED, &[b"one".to_vec(), b"two".to_vec()]);
        assert_eq!(decode(decoder, pieces).unwrap_err().s3_code(), code);
    }
}

#[test]
fn framing_of_every_bad_kind_is_refused() {
    let long_line = format!("5;{}\r\n", "x".repeat(CHUNK_LINE_BYTES_MAX));
    let long_trailer = format!("0\r\n{}:{}\r\n\r\n", CRC.0, "A".repeat(TRAILER_LINE_BYTES_MAX));
    let many_trailers = format!("0\r\n{}\r\n", "x-amz-checksum-crc32:AAAAAA==\r\n".repeat(9));
    for (wire, len, code) in [
        ("0x5\r\nhello\r\n", 5, "InvalidChunkSizeError"),
        ("+5\r\nhello\r\n", 5, "InvalidChunkSizeError"),
        ("-5\r\nhello\r\n", 5, "InvalidChunkSizeError"),
        (" 5\r\nhello\r\n", 5, "InvalidChunkSizeError"),
        ("5 \r\nhello\r\n", 5, "InvalidChunkSizeError"),
        ("\r\nhello\r\n", 5, "InvalidChunkSizeError"),
        ("g\r\nhello\r\n", 5, "InvalidChunkSizeError"),
        ("00000000000000005\r\nhello\r\n", 5, "InvalidChunkSizeError"),
        ("ffffffffffffffff\r\nhello\r\n", 5, "IncompleteBody"),
        ("5\r\nhello\r\nffffffffffffffff\r\n", 5, "IncompleteBody"),
        ("6\r\nhello!\r\n", 5, "IncompleteBody"),
        ("4\r\nhell\r\n0\r\n", 5, "IncompleteBody"),
        ("5\nhello\r\n", 5, "InvalidRequest"),
        ("5;x=y\r\nhello\r\n", 5, "InvalidRequest"),
        (long_line.as_str(), 5, "InvalidRequest"),
        ("5\r\nhello!\r\n", 5, "InvalidRequest"),
        ("5\r\nhello\n0\r\n", 5, "InvalidRequest"),
        ("5\r\nhello0\r\n", 5, "InvalidRequest"),
        ("0\r\n\r\n", 0, "MalformedTrailerError"),
        ("0\r\nx-amz-checksum-crc32c:AAAAAA==\r\n\r\n", 0, "MalformedTrailerError"),
        ("0\r\nx-amz-checksum-crc32:AA\r\nx-amz-checksum-crc32:AA\r\n\r\n", 0, "MalformedTrailerError"),
        ("0\r\nx-amz-checksum-crc32:A\rA\r\n\r\n", 0, "MalformedTrailerError"),
        ("0\r\nx-amz-checksum-crc32\r\n\r\n", 0, "MalformedTrailerError"),
        ("0\r\nx-amz-trailer-signature:00\r\n\r\n", 0, "MalformedTrailerError"),
        (many_trailers.as_str(), 0, "MalformedTrailerError"),
        (long_trailer.as_str(), 0, "InvalidRequest"),
        ("0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\nGET", 0, "InvalidRequest"),
        ("0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n\r\n\r\n\r\n", 0, "InvalidRequest"),
    ] {
        let whole = decode(unsigned_decoder(len), [wire.as_bytes()]).unwrap_err();
        assert_eq!(whole.s3_code(), code, "{wire:?}");
        let split = decode(unsigned_decoder(len), wire.as_bytes().chunks(1)).unwrap_err();
        assert_eq!(split, whole, "{wire:?}");
    }
}

#[test]
fn signed_framing_needs_its_signatures() {
    let final_line = |mode| {
        let (wire, _) = body(mode, &[]);
        String::from_utf8(wire).unwrap().split_once("\r\n").unwrap().0.to_owned()
    };
    let signed = final_line(SIGNED);
    for (wire, code) in [
        ("0\r\n\r\n".to_owned(), "InvalidRequest"),
        (format!("{}\r\n\r\n", &signed[..signed.len() - 1]), "InvalidRequest"),
        (format!("{signed}0\r\n\r\n"), "InvalidRequest"),
        (format!("{signed};x\r\n\r\n"), "InvalidRequest"),
        (signed.replace("chunk-signature", "chunk_signature") + "\r\n\r\n", "InvalidRequest"),
        (format!("{signed}\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"), "InvalidRequest"),
    ] {
        let (_, decoder) = body(SIGNED, &[]);
        assert_eq!(decode(decoder, [wire.as_bytes()]).unwrap_err().s3_code(), code, "{wire:?}");
    }

    let (right, _) = body(SIGNED_TRAILER, &[]);
    let right = String::from_utf8(right).unwrap();
    let signature = right.find("x-amz-trailer-signature").unwrap();
    for (wire, code) in [
        (right.replace("AAAAAA==", "BAAAAA=="), "SignatureDoesNotMatch"),
        (format!("{}\r\n\r\n\r\n", &right[..signature]), "MalformedTrailerError"),
        (right.replace("x-amz-checksum-crc32:AAAAAA==\r\n", ""), "SignatureDoesNotMatch"),
        (right.replace("\r\n\r\n", "\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"), "MalformedTrailerError"),
    ] {
        let (_, decoder) = body(SIGNED_TRAILER, &[]);
        assert_eq!(decode(decoder, [wire.as_bytes()]).unwrap_err().s3_code(), code, "{wire:?}");
    }
}

#[test]
fn line_ends_as_minio_go_writes_them_are_accepted() {
    let unsigned = b"0\r\nx-amz-checksum-crc32:AAAAAA==\n\r\n\r\n";
    assert_eq!(decode(unsigned_decoder(0), [&unsigned[..]]).unwrap().1.len(), 1);
    let (wire, decoder) = body(SIGNED_TRAILER, &[]);
    let wire = String::from_utf8(wire).unwrap().replace("AAAAAA==\r\n", "AAAAAA==\n\r\n");
    assert_eq!(decode(decoder, [wire.as_bytes()]).unwrap().1[0].value, CRC.1);
}

#[test]
fn an_error_stays() {
    let mut decoder = unsigned_decoder(5);
    let mut data = Vec::new();
    let error = decoder.feed(Bytes::from_static(b"zz\r\n"), &mut data).unwrap_err();
    assert_eq!(decoder.feed(Bytes::from_static(b"5\r\nhello\r\n"), &mut data), Err(error.clone()));
    assert!(data.is_empty());
    assert_eq!(decoder.finish(), Err(error));
}

#[test]
fn the_head_must_say_how_long_the_data_is() {
    let (mut head, _) = chunked_head(UNSIGNED_TRAILER, 5, &[]);
    let verified = authenticate(&head).unwrap();
    for (value, status, code) in [
        ("", 400, "InvalidArgument"),
        ("-1", 400, "InvalidArgument"),
        ("+1", 400, "InvalidArgument"),
        ("1x", 400, "InvalidArgument"),
        ("99999999999999999999", 400, "InvalidArgument"),
    ] {
        head.headers.insert("x-amz-decoded-content-length", value.parse().unwrap());
        let error = verified.chunk_decoder(&head.headers).unwrap_err();
        assert_eq!((error.status().as_u16(), error.s3_code()), (status, code), "{value}");
    }
    head.headers.remove("x-amz-decoded-content-length");
    let error = verified.chunk_decoder(&head.headers).unwrap_err();
    assert_eq!((error.status().as_u16(), error.s3_code()), (411, "MissingContentLength"));
}

#[test]
fn a_mode_without_trailers_must_not_declare_one() {
    let (head, _) = chunked_head(SIGNED, 5, &[CRC.0]);
    let error = authenticate(&head).unwrap().chunk_decoder(&head.headers).unwrap_err();
    assert_eq!(error.s3_code(), "MalformedTrailerError");
}

/// Cuts `wire` into pieces of the given lengths, over and over.
fn cut<'a>(wire: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = wire;
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*length).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fn chunks() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..5)
}

proptest! {
    #[test]
    fn the_outcome_does_not_depend_on_the_cuts(
        mode in prop::sample::select(MODES.to_vec()),
        chunks in chunks(),
        lengths in prop::collection::vec(1usize..70, 1..6),
        mutation in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let (mut wire, whole) = body(mode, &chunks);
        if let Some((at, byte)) = mutation {
            let at = at.index(wire.len());
            wire[at] = byte;
        }
        let (_, split) = body(mode, &chunks);
        prop_assert_eq!(decode(whole, [&wire[..]]), decode(split, cut(&wire, &lengths)));
    }

    #[test]
    fn a_mutated_signed_stream_never_yields_other_data(
        mode in prop::sample::select(vec![SIGNED, SIGNED_TRAILER]),
        chunks in chunks(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..4),
    ) {
        let (mut wire, decoder) = body(mode, &chunks);
        for (at, byte, kind) in mutations {
            let at = at.index(wire.len());
            match kind {
                0 => wire[at] = byte,
                1 => wire.insert(at, byte),
                _ => { wire.remove(at); }
            }
        }
        if let Ok((data, trailers)) = decode(decoder, [&wire[..]]) {
            prop_assert_eq!(data, chunks.concat());
            prop_assert!(trailers.iter().all(|trailer| trailer.value == CRC.1));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_yield_more_than_declared(
        wire in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200).boxed(),
            "[0-9a-f;\r\n:x]{0,80}".prop_map(String::into_bytes).boxed(),
        ],
        lengths in prop::collection::vec(1usize..40, 1..4),
    ) {
        let mut decoder = unsigned_decoder(20);
        let mut data = Vec::new();
        let failed = cut(&wire, &lengths)
            .into_iter()
            .any(|piece| decoder.feed(Bytes::copy_from_slice(piece), &mut data).is_err());
        prop_assert!(data.iter().map(Bytes::len).sum::<usize>() <= 20);
        if failed {
            prop_assert!(decoder.finish().is_err());
        }
    }
}
