//! Batches of raft messages as they go from replica to replica; `docs/formats/peers.md` has the bytes.
//!
//! Everything that says who may speak to whom stands in front of the messages and is checked before any of them is
//! parsed: the parser is the one part here that was not written with hostile bytes in mind.
//!
//! Invariants:
//! * A packet whose checksum, group, cluster, receiver or sender does not fit is refused before protobuf sees a byte.
//! * A message claims no other sender or receiver than its packet.
//!
//! Not here: who is a member (see `members`), the network (see `peer`).

use bytes::{Bytes, BytesMut};
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::group::Member;

/// The format of packets.
const PACKET_FORMAT: u32 = 1;

const MAGIC: &[u8; 4] = b"FZPB";

/// Magic, format and length of the head.
const PREFIX_SIZE: usize = 12;

/// The head in bytes at most: names, two incarnations, a few marks.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// A packet in bytes at most, unless a single message is longer. Half of what the network takes.
pub(crate) const PACKET_BYTES_MAX: usize = 8 << 20;

/// Messages in one packet at most.
const MESSAGES_MAX: usize = 4096;

/// The state hash of a replica at an index that all replicas mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) raft_id: u64,
    pub(crate) index: u64,
    /// High and low half of the hash.
    pub(crate) hash: (u64, u64),
}

/// What stands in front of the messages. Append fields with `#[serde(default)]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) group: String,
    pub(crate) cluster_id: Uuid,
    pub(crate) from: Member,
    pub(crate) to_raft_id: u64,
    pub(crate) to_incarnation: Uuid,
    /// State hashes that the sender knows, its own and others'.
    pub(crate) marks: Vec<Mark>,
    /// The sender's clock, in ms since 1970; 0 says nothing.
    #[serde(default)]
    pub(crate) sent_ms: u64,
    /// What the sender's disk lets pass: 0 everything, 1 commands that free space, 2 nothing.
    #[serde(default)]
    pub(crate) room: u8,
    /// The sender's process, drawn when it opened the group.
    #[serde(default)]
    pub(crate) life: u64,
    /// A question who lives at the receiver's address, 0 for none.
    #[serde(default)]
    pub(crate) question: u64,
    /// The question that this answers, 0 for none.
    #[serde(default)]
    pub(crate) answer: u64,
}

/// A packet whose head was checked.
pub(crate) struct Packet {
    pub(crate) head: Head,
    pub(crate) messages: Vec<Message>,
}

/// Messages with their head as one or more packets.
pub(crate) fn encode(head: &Head, messages: &[Message]) -> Vec<Bytes> {
    let head = rmp_serde::to_vec(head).expect("names, numbers and lists encode");
    let begin = || {
        let mut out = BytesMut::with_capacity(PREFIX_SIZE + head.len() + 256);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&PACKET_FORMAT.to_le_bytes());
        out.extend_from_slice(&(head.len() as u32).to_le_bytes());
        out.extend_from_slice(&head);
        out
    };
    let mut packets = Vec::new();
    let (mut out, mut count) = (begin(), 0);
    for message in messages {
        let bytes = message.write_to_bytes().expect("a message has its required fields");
        if count > 0 && (count == MESSAGES_MAX || out.len() + bytes.len() > PACKET_BYTES_MAX) {
            packets.push(seal(std::mem::replace(&mut out, begin())));
            count = 0;
        }
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(&bytes);
        count += 1;
    }
    packets.push(seal(out));
    packets
}

fn seal(mut out: BytesMut) -> Bytes {
    let crc = crc_fast::crc32_iscsi(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// Reads a packet. `admit` sees the head before any message is parsed and says why it may not pass.
pub(crate) fn decode(
    packet: &[u8],
    admit: impl FnOnce(&Head) -> Result<(), &'static str>,
) -> Result<Packet, &'static str> {
    decode_of(packet, is_between_peers, admit)
}

/// What precedes a snapshot: the packet of raft's message, behind its length, then the snapshot's own head.
pub(crate) fn encode_call(head: &Head, message: Message, snapshot_head: &[u8]) -> Bytes {
    let packet = encode(head, &[message]).remove(0);
    let mut out = BytesMut::with_capacity(4 + packet.len() + snapshot_head.len());
    out.extend_from_slice(&(packet.len() as u32).to_le_bytes());
    out.extend_from_slice(&packet);
    out.extend_from_slice(snapshot_head);
    out.freeze()
}

/// Reads what precedes a snapshot: its packet with the one message, and the bytes of the snapshot's own head.
pub(crate) fn decode_call(
    call: &[u8],
    admit: impl FnOnce(&Head) -> Result<(), &'static str>,
) -> Result<(Packet, &[u8]), &'static str> {
    let (size, rest) = call.split_first_chunk::<4>().ok_or("it is too short")?;
    let (packet, snapshot_head) = rest.split_at_checked(word(size) as usize).ok_or("it is too short")?;
    let packet = decode_of(packet, |kind| kind == MessageType::MsgSnapshot, admit)?;
    if packet.messages.len() != 1 {
        return Err("it is not about one snapshot");
    }
    Ok((packet, snapshot_head))
}

fn decode_of(
    packet: &[u8],
    is_wanted: impl Fn(MessageType) -> bool,
    admit: impl FnOnce(&Head) -> Result<(), &'static str>,
) -> Result<Packet, &'static str> {
    let (checked, crc) = packet.split_last_chunk::<4>().ok_or("it is too short")?;
    if crc_fast::crc32_iscsi(checked).to_le_bytes() != *crc {
        return Err("its checksum does not fit");
    }
    let (prefix, rest) = checked.split_first_chunk::<PREFIX_SIZE>().ok_or("it is too short")?;
    if !prefix.starts_with(MAGIC) || word(&prefix[4..8]) != PACKET_FORMAT {
        return Err("it has another format");
    }
    let head_size = word(&prefix[8..12]) as usize;
    if head_size > HEAD_BYTES_MAX {
        return Err("its head is too long");
    }
    let (head, mut rest) = rest.split_at_checked(head_size).ok_or("it is too short")?;
    let head: Head = rmp_serde::from_slice(head).map_err(|_| "its head is unreadable")?;
    admit(&head)?;
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (size, behind) = rest.split_first_chunk::<4>().ok_or("a message is cut off")?;
        let (bytes, behind) = behind.split_at_checked(word(size) as usize).ok_or("a message is cut off")?;
        if messages.len() == MESSAGES_MAX {
            return Err("it has too many messages");
        }
        let message = Message::parse_from_bytes(bytes).map_err(|_| "a message is unreadable")?;
        if message.from != head.from.raft_id || message.to != head.to_raft_id {
            return Err("a message is from or to somebody else");
        }
        if !is_wanted(message.get_msg_type()) {
            return Err("a message is none that peers send this way");
        }
        messages.push(message);
        rest = behind;
    }
    Ok(Packet { head, messages })
}

/// What peers send one another. Proposals and reads are never forwarded, and a snapshot has its own way.
fn is_between_peers(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::MsgAppend
            | MessageType::MsgAppendResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgTimeoutNow
    )
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        let address = wire::host::HostPort::new("om1:9002").unwrap();
        Head {
            group: "om".to_owned(),
            cluster_id: Uuid::from_u128(5),
            from: Member { raft_id: 1, incarnation: Uuid::from_u128(6), node: "om1".to_owned(), address },
            to_raft_id: 2,
            to_incarnation: Uuid::from_u128(7),
            marks: vec![Mark { raft_id: 1, index: 10_000, hash: (1, 2) }],
            sent_ms: 300,
            room: 1,
            life: 9,
            question: 0,
            answer: 0,
        }
    }

    fn heartbeat() -> Message {
        let mut message = Message { from: 1, to: 2, term: 3, commit: 9, ..Message::default() };
        message.set_msg_type(MessageType::MsgHeartbeat);
        message
    }

    #[test]
    fn a_packet_comes_back() {
        let packets = encode(&head(), &[heartbeat(), heartbeat()]);
        assert_eq!(packets.len(), 1);
        let packet = decode(&packets[0], |_| Ok(())).unwrap();
        assert_eq!(packet.messages, [heartbeat(), heartbeat()]);
        assert_eq!(packet.head.marks, head().marks);
    }

    #[test]
    fn long_batches_are_cut_into_packets() {
        let mut message = heartbeat();
        message.set_msg_type(MessageType::MsgAppend);
        message
            .mut_entries()
            .push(raft::eraftpb::Entry { data: vec![7; 3 << 20].into(), ..Default::default() });
        let packets = encode(&head(), &vec![message; 5]);
        assert_eq!(packets.len(), 3);
        assert!(packets.iter().all(|packet| packet.len() <= PACKET_BYTES_MAX));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let packet = encode(&head(), &[heartbeat()]).remove(0);
        for at in 0..packet.len() {
            let mut bytes = packet.to_vec();
            bytes[at] ^= 1 << (at % 8);
            assert!(decode(&bytes, |_| Ok(())).is_err(), "byte {at}");
            assert!(decode(&packet[..at], |_| Ok(())).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_peers_never_send_is_refused() {
        for kind in [
            MessageType::MsgHup,
            MessageType::MsgPropose,
            MessageType::MsgReadIndex,
            MessageType::MsgSnapshot,
        ] {
            let mut message = heartbeat();
            message.set_msg_type(kind);
            assert!(decode(&encode(&head(), &[message])[0], |_| Ok(())).is_err(), "{kind:?}");
        }
        let stranger = Message { from: 3, ..heartbeat() };
        assert!(decode(&encode(&head(), &[stranger])[0], |_| Ok(())).is_err());
        assert!(decode(&encode(&head(), &[heartbeat()])[0], |_| Err("no")).is_err());
    }

    /// The bytes between releases: a change here needs a new format.
    #[test]
    fn a_packet_has_the_documented_bytes() {
        let packet = encode(&head(), &[heartbeat()]).remove(0);
        let text: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, include_str!("../tests/format/packet-1.hex").trim());
    }
}
