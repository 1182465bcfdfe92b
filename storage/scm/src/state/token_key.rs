//! Keys with which OM signs block tokens and datanodes check them.
//!
//! Invariant: a key's id is never given to another secret.
//!
//! Not here: drawing the secret and deciding when (the shell).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError, WriteBatch};
use wire::block::TokenKey;
use wire::clock::UnixMs;

use super::{Reply, advance_clock, last_number, next_number};
use crate::command::AddTokenKey;
use crate::schema::{TOKEN_KEY, TokenKeyRow, meta, parse_number, save, scan};

/// Adds a key and drops those whose tokens are refused anyway.
pub(super) fn add(batch: &mut WriteBatch<'_>, command: &AddTokenKey) -> Result<Reply, StoreError> {
    if last_number(batch, meta::LAST_TOKEN_KEY)? != u64::from(command.after) {
        return Ok(Reply::Done);
    }
    let expired: Vec<_> = all_keys(batch)?
        .into_iter()
        .filter(|(key, _)| key.expires_ms <= command.now_ms)
        .map(|(key, _)| key.id)
        .collect();
    let now_ms = advance_clock(batch, command.now_ms)?;
    let id = next_number(batch, meta::LAST_TOKEN_KEY)?;
    let row = TokenKeyRow { secret: command.secret, created_ms: now_ms, expires_ms: command.expires_ms };
    save(batch, TOKEN_KEY, &id.to_be_bytes(), &row)?;
    for id in expired {
        batch.delete(TOKEN_KEY, &u64::from(id).to_be_bytes())?;
    }
    Ok(Reply::Done)
}

/// The keys that are good at `now_ms`, oldest first, each with the time it was made.
pub(crate) fn live_keys(rows: &impl Rows, now_ms: UnixMs) -> Result<Vec<(TokenKey, UnixMs)>, StoreError> {
    let mut keys = all_keys(rows)?;
    keys.retain(|(key, _)| key.expires_ms > now_ms);
    Ok(keys)
}

fn all_keys(rows: &impl Rows) -> Result<Vec<(TokenKey, UnixMs)>, StoreError> {
    let mut keys = Vec::new();
    scan(rows, TOKEN_KEY, &[], None, |row_key, row: TokenKeyRow| {
        // One key a day: 32 bits last longer than the machine.
        let id = parse_number(TOKEN_KEY, row_key)? as u32;
        keys.push((TokenKey { id, secret: row.secret, expires_ms: row.expires_ms }, row.created_ms));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(keys)
}
