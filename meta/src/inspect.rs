//! Rows and commands as text, for people who look at a damaged directory and for the tests of the formats.
//!
//! Not here: opening files (consensus), printing (cli).

use std::fmt::Debug;

use consensus::StoreError;
use serde::de::DeserializeOwned;
use wire::block::BlockEntry;
use wire::ids::SessionId;
use wire::om::UserInfo;

use crate::command::Command;
use crate::schema::{self, KeyRow, TABLES, decode};
use crate::state::Reply;

/// The names of all tables, in their order.
pub fn tables() -> Vec<&'static str> {
    TABLES.iter().map(|table| table.name()).collect()
}

/// A row as text. None if there is no such table, or the row does not decode.
pub fn row(table: &str, row_key: &[u8], value: &[u8]) -> Option<String> {
    let table = *TABLES.iter().find(|known| known.name() == table)?;
    match table {
        schema::META if row_key == schema::META_HANDOVER => {
            text::<schema::HandoverRow>(table, row_key, value)
        }
        schema::META if row_key == schema::META_DEFAULTS => {
            text::<schema::DefaultsRow>(table, row_key, value)
        }
        schema::META => text::<u64>(table, row_key, value),
        schema::VOLUME => text::<schema::VolumeRow>(table, row_key, value),
        schema::BUCKET => text::<schema::BucketRow>(table, row_key, value),
        schema::OWNER if value.is_empty() => Some(String::new()),
        schema::OWNER => text::<u64>(table, row_key, value),
        schema::USAGE => text::<schema::UsageRow>(table, row_key, value),
        schema::KEY => shown(KeyRow::decode(row_key, value)),
        schema::LAYOUT => text::<Vec<BlockEntry>>(table, row_key, value),
        schema::UPLOAD => text::<schema::UploadRow>(table, row_key, value),
        schema::UPLOAD_ORDER | schema::LOAN_SESSION => {
            Some(format!("{:032x}", u128::from_be_bytes(*value.first_chunk()?)))
        }
        schema::UPLOAD_DONE => text::<schema::UploadDoneRow>(table, row_key, value),
        schema::PART => text::<schema::PartRow>(table, row_key, value),
        schema::BLOCK => text::<schema::BlockRow>(table, row_key, value),
        schema::BLOCK_REF => text::<schema::BlockRefRow>(table, row_key, value),
        schema::SESSION_NONCE => text::<SessionId>(table, row_key, value),
        schema::BUCKET_ID => Some(value.escape_ascii().to_string()),
        schema::VOLUME_OWNER => value.is_empty().then(String::new),
        schema::RETIRED => text::<schema::RetiredRow>(table, row_key, value),
        schema::SESSION => text::<schema::SessionRow>(table, row_key, value),
        schema::REQUEST => text::<Reply>(table, row_key, value),
        schema::LEASE => text::<schema::LeaseRow>(table, row_key, value),
        schema::LOAN => text::<schema::LoanRow>(table, row_key, value),
        schema::DELETED => text::<schema::DeletedRow>(table, row_key, value),
        schema::WORK => text::<schema::WorkRow>(table, row_key, value),
        schema::ACCESS if row_key.starts_with(b"user\0") => text::<UserInfo>(table, row_key, value),
        // The secret is sealed: what is printed here opens nothing.
        schema::ACCESS => text::<schema::AccessKeyRow>(table, row_key, value),
        _ => None,
    }
}

/// A logged command as text: the proposer's clock and the body. None if this version does not know it.
pub fn command(bytes: &[u8]) -> Option<String> {
    Command::decode(bytes).map(|(now_ms, command)| format!("at {now_ms}: {command:?}"))
}

fn text<T: DeserializeOwned + Debug>(
    table: consensus::Table,
    row_key: &[u8],
    value: &[u8],
) -> Option<String> {
    shown(decode::<T>(table, row_key, value))
}

fn shown<T: Debug>(row: Result<T, StoreError>) -> Option<String> {
    row.ok().map(|row| format!("{row:?}"))
}
