//! Runs golden scripts over apply: `testscripts/<topic>/<scenario>`.
//!
//! Each command prints its reply, then the rows it changed (`+` new or changed, `-` gone). After each the invariants of
//! `invariants` are checked. Sessions are named by a letter, uploads by a word; the commands are listed in [`Script`].

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::{Debug, Write};

use consensus::Rows;
use goldenscript::{ArgumentConsumer, Command, Context, Runner};
use serde::de::DeserializeOwned;
use wire::block::{BlockEntry, Replication};
use wire::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind};
use wire::ids::{BlockId, ContainerId, LeaseId, LoanId, LocalId, SessionId, VersionId, WriteId};
use wire::limits::PART_BYTES_MIN;
use wire::names::{BucketName, KeyName};
use wire::om::{
    AbortUpload, BucketRef, CompleteUpload, CompletedPart, CopyKey, CreateBucket, CreateUpload, DeleteBucket,
    DeleteKeys, ListItem, ListKeys, ReleaseBlocks, StorageClass, UserId, WriteCondition, WriteContext,
};

use wire::operator::{
    CreateNamespaceBucket, CreateVolume, DeleteNamespaceBucket, DeleteVolume, ListContainerKeys,
    ListNamespaceBuckets, ListVolumes, Quota, SetBucketQuota, SetDefaultReplication, SetVolume,
};

use super::{Core, block_id, commit_key, commit_part, entry_of, etag_of_size, invariants, user};
use crate::command;
use crate::schema::{self, KeyRow, TABLES};
use crate::state::{Reply, RowsExt, Stop, bucket, key, listing, namespace, volume};

/// What a script acts on.
struct Script {
    core: Core,
    sessions: BTreeMap<String, SessionId>,
    sequences: BTreeMap<SessionId, u64>,
    uploads: BTreeMap<String, (WriteId, String)>,
    buckets: BTreeMap<String, BucketRef>,
    lent: BTreeSet<BlockId>,
    gone: usize,
    rows: BTreeMap<(usize, Vec<u8>), Vec<u8>>,
}

type Outcome = Result<String, Box<dyn Error>>;

impl Script {
    fn new() -> Self {
        Self {
            core: Core::new(),
            sessions: BTreeMap::new(),
            sequences: BTreeMap::new(),
            uploads: BTreeMap::new(),
            buckets: BTreeMap::new(),
            lent: BTreeSet::new(),
            gone: 0,
            rows: BTreeMap::new(),
        }
    }

    /// `s=a`: the session; `seq=3`: a number used before, else the next; `ack=2`: acknowledged, else everything before.
    fn context(&mut self, args: &mut ArgumentConsumer<'_>) -> Result<WriteContext, Box<dyn Error>> {
        let name = args.take_key("s").unwrap_or("a");
        let session = *self.sessions.get(name).ok_or("no such session")?;
        let next = self.sequences.entry(session).or_default();
        let sequence = match args.take_key("seq") {
            Some(sequence) => sequence.parse()?,
            None => {
                *next += 1;
                *next
            }
        };
        let acknowledged = args.take_key("ack").map_or(Ok(sequence), str::parse)?;
        Ok(WriteContext { session, sequence, acknowledged })
    }

    fn bucket(&self, args: &mut ArgumentConsumer<'_>) -> Result<BucketRef, Box<dyn Error>> {
        let name = args.take_key("bucket").unwrap_or("bucket");
        let mut bucket = self.buckets.get(name).cloned().ok_or("no such bucket")?;
        if let Some(version) = args.take_key("config") {
            bucket.config_version = version.parse()?;
        }
        if let Some(version) = args.take_key("access") {
            bucket.access_version = version.parse()?;
        }
        Ok(bucket)
    }

    fn upload(&self, args: &mut ArgumentConsumer<'_>) -> Result<(WriteId, String), Box<dyn Error>> {
        let name = args.take_key("upload").unwrap_or("u");
        Ok(self.uploads.get(name).cloned().ok_or("no such upload")?)
    }

    fn run_command(&mut self, command: &Command) -> Outcome {
        let mut args = command.consume_args();
        let outcome = match command.name.as_str() {
            "time" => self.time(&mut args),
            "session" | "end" => self.session(command.name.as_str(), &mut args),
            "lease" | "end-lease" | "drop-lease" | "loan" | "release" | "expire" => {
                self.lending(command.name.as_str(), &mut args)
            }
            "bucket" | "delete-bucket" => self.bucket_command(command.name.as_str(), &mut args),
            "volume" | "set-volume" | "delete-volume" | "namespace-bucket" | "set-quota" | "remove"
            | "default" | "retire" => self.namespace(command.name.as_str(), &mut args),
            "volumes" | "namespace" | "where-container" | "look" => {
                self.look(command.name.as_str(), &mut args)
            }
            "commit" | "delete" | "copy" => self.key_command(command.name.as_str(), &mut args),
            "create-upload" | "part" | "complete" | "abort" | "expire-uploads" => {
                self.multipart(command.name.as_str(), &mut args)
            }
            "work" | "handover" => self.background(command.name.as_str(), &mut args),
            "list" => self.list(&mut args),
            "stat" => self.stat(&mut args),
            other => Err(format!("unknown command {other}").into()),
        }?;
        args.reject_next()?;
        Ok(outcome)
    }

    /// `time +MS`: the proposer's clock moves on.
    fn time(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let by: i64 = args.next_pos().ok_or("by how much?")?.parse()?;
        self.core.now_ms = self.core.now_ms.saturating_add_signed(by);
        Ok(String::new())
    }

    /// `session NAME`, `end NAME`.
    fn session(&mut self, what: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let name = args.next_pos().ok_or("which session?")?.to_owned();
        if what == "end" {
            let session = *self.sessions.get(&name).ok_or("no such session")?;
            return Ok(reply_text(&self.core.apply(command::EndSession { session })));
        }
        let nonce = name.bytes().next().unwrap_or(0);
        let session = self.core.open_session(nonce);
        self.sessions.insert(name, session);
        Ok(format!("session {session}\n"))
    }

    /// `lease ID container=C count=N`, `end-lease ID`, `drop-lease ID`, `loan N lease=ID`, `release BLOCK.. loan=ID`,
    /// `expire before=MS`.
    fn lending(&mut self, what: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let reply = match what {
            "lease" => {
                let id: u64 = args.next_pos().ok_or("which lease?")?.parse()?;
                let container = args.take_key("container").map_or(Ok(id), str::parse)?;
                let count = args.take_key("count").map_or(Ok(1000), str::parse)?;
                self.core.add_lease(id, container, count);
                Reply::Done
            }
            "end-lease" | "drop-lease" => {
                let lease = LeaseId(args.next_pos().ok_or("which lease?")?.parse()?);
                match what {
                    "end-lease" => self.core.apply(command::EndLeases { leases: vec![lease] }),
                    _ => self.core.apply(command::DropLeases { leases: vec![lease] }),
                }
            }
            "loan" => {
                let count = args.next_pos().ok_or("how many ids?")?.parse()?;
                let lease = LeaseId(args.take_key("lease").map_or(Ok(1), str::parse)?);
                let context = self.context(args)?;
                let reply = self.core.apply(command::TakeLoan { context, lease, count });
                if let Reply::Lent(lent) = &reply {
                    for local in lent.first.0..lent.first.0 + u64::from(lent.count) {
                        self.lent.insert(BlockId { container: lent.container, local: LocalId(local) });
                    }
                }
                reply
            }
            "release" => {
                let context = self.context(args)?;
                let loan = args.take_key("loan").map(str::parse).transpose()?.map(LoanId);
                let mut blocks = Vec::new();
                while let Some(block) = args.next_pos() {
                    blocks.extend(blocks_of(block)?);
                }
                self.core.apply(ReleaseBlocks { context, blocks, loan })
            }
            _ => {
                let taken_before_ms = args.take_key("before").ok_or("before when?")?.parse()?;
                let mut loans = Vec::new();
                while let Some(block) = args.next_pos() {
                    loans.extend(blocks_of(block)?.into_iter().map(|block| (block.container, block.local)));
                }
                self.core.apply(command::ExpireLoans { loans, taken_before_ms })
            }
        };
        Ok(reply_text(&reply))
    }

    /// `bucket NAME owner=O`, `delete-bucket bucket=NAME`.
    fn bucket_command(&mut self, what: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        if what == "delete-bucket" {
            let bucket = self.bucket(args)?;
            let context = self.context(args)?;
            return Ok(reply_text(&self.core.apply(DeleteBucket { context, bucket })));
        }
        let name = args.next_pos().unwrap_or("bucket").to_owned();
        let owner = user(args.take_key("owner").unwrap_or("root"));
        let context = self.context(args)?;
        let create = CreateBucket { context, name: BucketName::new(&name)?, owner, location: String::new() };
        let reply = self.core.apply(create);
        if let Reply::Bucket(info) = &reply {
            let bucket = BucketRef {
                name: info.name.clone(),
                id: info.id,
                config_version: info.config_version,
                access_version: 0,
            };
            self.buckets.insert(name, bucket);
        }
        Ok(reply_text(&reply))
    }

    /// `volume NAME owner=O bytes=N count=N`, `set-volume NAME owner=O bytes=N count=N`, `delete-volume NAME`,
    /// `namespace-bucket VOLUME/NAME owner=O bytes=N count=N link=VOLUME/NAME`, `set-quota VOLUME/NAME bytes=N count=N`,
    /// `remove VOLUME/NAME`, `default one|three|none bucket=NAME`, `retire CONTAINER`.
    fn namespace(&mut self, what: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let target = args.next_pos().ok_or("which?")?.to_owned();
        let owner = args.take_key("owner").map(|owner| UserId(owner.to_owned()));
        let bytes = args.take_key("bytes").map(str::parse).transpose()?;
        let count = args.take_key("count").map(str::parse).transpose()?;
        let quota = Quota { bytes, count };
        let some_owner = owner.clone().unwrap_or(UserId("root".into()));
        let reply = match what {
            "volume" => {
                let name = BucketName::new(&target)?;
                self.core.apply(CreateVolume { name, owner: some_owner, quota })
            }
            "set-volume" => {
                let quota = (quota != Quota::default()).then_some(quota);
                self.core.apply(SetVolume { name: BucketName::new(&target)?, owner, quota })
            }
            "delete-volume" => self.core.apply(DeleteVolume { name: BucketName::new(&target)? }),
            "default" => {
                let bucket = args.take_key("bucket").map(BucketName::new).transpose()?;
                let replication = match target.as_str() {
                    "one" => Some(Replication::One),
                    "three" => Some(Replication::Three),
                    _ => None,
                };
                self.core.apply(SetDefaultReplication { bucket, replication })
            }
            "retire" => self.core.apply(command::RetireContainer { container: ContainerId(target.parse()?) }),
            _ => {
                let (volume, name) = name_of(&target)?;
                let source = args.take_key("link").map(name_of).transpose()?;
                match what {
                    "namespace-bucket" => self.core.apply(CreateNamespaceBucket {
                        volume,
                        name,
                        owner: some_owner,
                        quota,
                        source,
                    }),
                    "set-quota" => self.core.apply(SetBucketQuota { volume, name, quota }),
                    _ => self.core.apply(DeleteNamespaceBucket { volume, name }),
                }
            }
        };
        Ok(reply_text(&reply))
    }

    /// `look NAME`: the bucket of `s3v` as S3 sees it, remembered for later commands. `volumes owner=O`, `namespace VOLUME`,
    /// `where-container C after=L max=N`.
    fn look(&mut self, what: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let view = self.core.view();
        let mut text = String::new();
        match what {
            "look" => {
                let name = args.next_pos().ok_or("which bucket?")?.to_owned();
                let current = view.current()?;
                match bucket::get(&view, current.defaults, &BucketName::new(&name)?) {
                    Ok(info) => {
                        writeln!(
                            text,
                            "bucket {} of {}, configuration {}, {:?}",
                            info.id, info.owner.id.0, info.config_version, info.replication
                        )?;
                        let bucket = BucketRef {
                            name: info.name,
                            id: info.id,
                            config_version: info.config_version,
                            access_version: 0,
                        };
                        self.buckets.insert(name, bucket);
                    }
                    Err(Stop::Reject(rejection)) => writeln!(text, "rejected: {rejection}")?,
                    Err(Stop::Fault(error)) => return Err(error.into()),
                }
            }
            "volumes" => {
                let owner = args.take_key("owner").map(|owner| UserId(owner.to_owned()));
                for volume in volume::list(&view, &ListVolumes { owner, after: String::new(), max: 100 })? {
                    let (name, owner, used) = (volume.name, volume.owner.0, volume.used_bytes);
                    writeln!(text, "{name} of {owner:?}: {} buckets, {used} bytes", volume.buckets)?;
                }
            }
            "namespace" => {
                let volume = BucketName::new(args.next_pos().ok_or("which volume?")?)?;
                let request = ListNamespaceBuckets { volume, after: String::new(), max: 100 };
                for bucket in namespace::list(&view, &request).map_err(|stop| format!("{stop:?}"))? {
                    let source =
                        bucket.source.map_or(String::new(), |(volume, name)| format!(" -> {volume}/{name}"));
                    let (name, keys, used) = (bucket.name, bucket.keys, bucket.used_bytes);
                    writeln!(text, "{name}{source} of {}: {keys} keys, {used} bytes", bucket.owner.0)?;
                }
            }
            _ => {
                let container = ContainerId(args.next_pos().ok_or("which container?")?.parse()?);
                let after = LocalId(args.take_key("after").map_or(Ok(0), str::parse)?);
                let max = args.take_key("max").map_or(Ok(100), str::parse)?;
                let page = namespace::container_keys(&view, &ListContainerKeys { container, after, max })?;
                for block in page.blocks {
                    let state = if block.is_freed { "freed" } else { "owned" };
                    let (bucket, key) = (block.bucket.unwrap_or_default(), block.key.unwrap_or_default());
                    writeln!(
                        text,
                        "{} {state} by {}: {bucket:?} {key:?}",
                        block.local,
                        short(block.write_id)
                    )?;
                }
                if page.is_truncated {
                    text.push_str("(more)\n");
                }
            }
        }
        Ok(text)
    }

    /// `commit KEY BLOCK.. if=COND`, `delete KEY.. if=COND`, `copy FROM TO version=INDEX type=Three if=COND`. A block is
    /// `C/L`, `C/L-L` for several, each of 10 bytes.
    fn key_command(&mut self, what: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let bucket = self.bucket(args)?;
        let condition = condition_of(args.take_key("if"))?;
        let context = self.context(args)?;
        let reply = match what {
            "commit" => {
                let key = args.next_pos().ok_or("which key?")?.to_owned();
                let entries = entries_of(args, 10)?;
                let commit = commit_key(context, bucket, &key, entries);
                self.core.apply(wire::om::CommitKey { condition, ..commit })
            }
            "delete" => {
                let mut keys = Vec::new();
                while let Some(key) = args.next_pos() {
                    keys.push((KeyName::new(key)?, condition));
                }
                self.core.apply(DeleteKeys { context, bucket, keys })
            }
            _ => {
                let from = KeyName::new(args.next_pos().ok_or("from?")?)?;
                let to = KeyName::new(args.next_pos().ok_or("to?")?)?;
                let source = key::get(&self.core.view(), bucket.id, &from)?;
                let version = match args.take_key("version") {
                    Some(index) => VersionId { index: index.parse()?, ordinal: 0 },
                    None => source.map(|row| row.rest.version).unwrap_or_default(),
                };
                let replication = match args.take_key("type") {
                    Some("three") => Replication::Three,
                    _ => Replication::One,
                };
                self.core.apply(CopyKey {
                    context,
                    source_bucket: bucket.clone(),
                    source_key: from,
                    source_version: version,
                    bucket,
                    key: to,
                    condition,
                    owner: UserId("root".into()),
                    storage_class: StorageClass::Standard,
                    replication,
                    attributes: None,
                })
            }
        };
        Ok(reply_text(&reply))
    }

    /// `create-upload KEY upload=NAME`, `part N BLOCK.. size=BYTES` (of each block; 5 MiB unless told), `complete N..
    /// etag=bad|size=BYTES sum=wrong if=COND`, `abort`, `expire-uploads before=MS`.
    fn multipart(&mut self, what: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        if what == "expire-uploads" {
            let completed_before_ms = args.take_key("before").ok_or("before when?")?.parse()?;
            let mut rows = Vec::new();
            self.core.view().scan(schema::UPLOAD_DONE, &[], None, &mut |row_key, _| {
                rows.push(serde_bytes::ByteBuf::from(row_key));
                std::ops::ControlFlow::Continue(())
            })?;
            let command = command::ExpireUploads { rows, completed_before_ms };
            return Ok(reply_text(&self.core.apply(command)));
        }
        let bucket = self.bucket(args)?;
        let context = self.context(args)?;
        if what == "create-upload" {
            let key = args.next_pos().ok_or("which key?")?.to_owned();
            let name = args.take_key("upload").unwrap_or("u").to_owned();
            let create = CreateUpload {
                context,
                bucket,
                key: KeyName::new(&key)?,
                owner: user("root"),
                storage_class: StorageClass::Standard,
                replication: Replication::One,
                attributes: Default::default(),
                checksum: None,
            };
            let reply = self.core.apply(create);
            if let Reply::Upload(upload) = &reply {
                self.uploads.insert(name, (*upload, key));
            }
            return Ok(reply_text(&reply));
        }
        let (upload, key) = self.upload(args)?;
        let reply = match what {
            "part" => {
                let size = args.take_key("size").map_or(Ok(PART_BYTES_MIN), str::parse)?;
                let part = args.next_pos().ok_or("which part?")?.parse()?;
                let entries = entries_of(args, size)?;
                self.core.apply(commit_part(context, bucket, &key, upload, part, entries))
            }
            "complete" => {
                let complete = CompleteUpload {
                    context,
                    bucket,
                    key: KeyName::new(&key)?,
                    upload,
                    condition: condition_of(args.take_key("if"))?,
                    expected: args.take_key("sum").map(|sum| Checksum {
                        algorithm: ChecksumAlgorithm::Crc64Nvme,
                        kind: ChecksumKind::FullObject,
                        value: sum.as_bytes().to_vec().into(),
                    }),
                    expected_size: args.take_key("size").map(str::parse).transpose()?,
                    parts: self.named_parts(upload, args)?,
                };
                self.core.apply(complete)
            }
            _ => self.core.apply(AbortUpload { context, bucket, key: KeyName::new(&key)?, upload }),
        };
        Ok(reply_text(&reply))
    }

    /// Parts as `N`, or `N:SIZE` with the ETag of another size than the part's.
    fn named_parts(
        &self,
        upload: WriteId,
        args: &mut ArgumentConsumer<'_>,
    ) -> Result<Vec<CompletedPart>, Box<dyn Error>> {
        let mut parts = Vec::new();
        while let Some(text) = args.next_pos() {
            let (part, size) = text.split_once(':').map_or((text, None), |(part, size)| (part, Some(size)));
            let part: u32 = part.parse()?;
            let row = self.core.view().get(schema::PART, &schema::part_row_key(upload, part))?;
            let row = row.map(|row| rmp_serde::from_slice::<schema::PartRow>(&row)).transpose()?;
            let size = match size {
                Some(size) => size.parse()?,
                None => row.map_or(0, |row| row.size),
            };
            parts.push(CompletedPart { part, etag: Some(etag_of_size(size)), checksum: None });
        }
        Ok(parts)
    }

    /// `work [after-grace]`: the queue to its end. `handover`: all freed blocks.
    fn background(&mut self, what: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        if what == "handover" {
            let count = self.core.hand_over();
            self.gone += count as usize;
            return Ok(format!("{count} blocks\n"));
        }
        let after_grace = args.next_pos() == Some("after-grace");
        let before = invariants::going_with_their_container(&self.core.view());
        let steps = self.core.work_off(after_grace);
        self.gone += before - invariants::going_with_their_container(&self.core.view());
        Ok(format!("{steps} steps\n"))
    }

    /// `list prefix=P delimiter=D after=A max=N`.
    fn list(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let mut take = |name| args.take_key(name).unwrap_or_default().to_owned();
        let (prefix, delimiter, after, max) = (take("prefix"), take("delimiter"), take("after"), take("max"));
        let bucket = self.bucket(args)?;
        let max = if max.is_empty() { 1000 } else { max.parse()? };
        let id = bucket.id;
        let page =
            listing::list_keys(&self.core.view(), id, &ListKeys { bucket, prefix, delimiter, after, max })?;
        let mut text = String::new();
        for item in page.items {
            match item {
                ListItem::Key(key, head) => writeln!(text, "{key:?} {} bytes", head.size)?,
                ListItem::Prefix(prefix) => writeln!(text, "{prefix:?} ...")?,
            }
        }
        if page.is_truncated {
            text.push_str("(more)\n");
        }
        Ok(text)
    }

    /// `stat KEY`.
    fn stat(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let key = KeyName::new(args.next_pos().ok_or("which key?")?)?;
        let bucket = self.bucket(args)?;
        let Some(row) = key::get(&self.core.view(), bucket.id, &key)? else { return Ok("none\n".to_owned()) };
        let (info, data) = row.into_info();
        Ok(format!("{:?}\nversion {}, {}\n", info.head, info.version.index, data_text(&data)))
    }

    /// Rows that changed since the last call, readable.
    fn changes(&mut self) -> String {
        let view = self.core.view();
        let mut now = BTreeMap::new();
        for table in TABLES {
            view.scan(*table, &[], None, &mut |row_key, value| {
                now.insert((table.index(), row_key.to_vec()), value.to_vec());
                std::ops::ControlFlow::Continue(())
            })
            .expect("memory does not fail");
        }
        let mut text = String::new();
        for (at, value) in &now {
            if self.rows.get(at) != Some(value) && !is_noise(at.0) {
                let _ = writeln!(text, "+ {} {}", row_name(at), row_text(at, value));
            }
        }
        for at in self.rows.keys().filter(|at| !now.contains_key(at) && !is_noise(at.0)) {
            let _ = writeln!(text, "- {}", row_name(at));
        }
        self.rows = now;
        text
    }
}

/// The clock changes with every command, and a remembered reply repeats what was just printed.
fn is_noise(table: usize) -> bool {
    table == schema::META.index() || table == schema::REQUEST.index() || table == schema::USAGE.index()
}

/// A row key in its table's shape: names as they are, numbers as numbers.
fn row_name((table, row_key): &(usize, Vec<u8>)) -> String {
    let mut name = TABLES[*table].name().to_owned();
    let rest = match TABLES[*table] {
        schema::VOLUME
        | schema::BUCKET
        | schema::OWNER
        | schema::VOLUME_OWNER
        | schema::USAGE
        | schema::ACCESS => {
            let _ = write!(name, " {}", row_key.escape_ascii());
            return name;
        }
        schema::KEY => {
            let _ = write!(name, " {} {}", number(row_key), row_key[8..].escape_ascii());
            return name;
        }
        schema::UPLOAD_ORDER => {
            let (key, created) = row_key[8..].split_at(row_key.len() - 16);
            let _ = write!(name, " {} {} {}", number(row_key), key.escape_ascii(), number(created));
            return name;
        }
        schema::WORK => {
            let _ = write!(name, " queue {}", row_key[0]);
            &row_key[1..]
        }
        _ => row_key.as_slice(),
    };
    for bytes in rest.chunks(8) {
        let _ = write!(name, " {}", number(bytes));
    }
    name
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

fn blocks_text(entries: &[BlockEntry]) -> String {
    let blocks: Vec<String> = entries.iter().map(|entry| entry.block.to_string()).collect();
    format!("blocks {}", blocks.join(" "))
}

fn data_text(data: &schema::Data) -> String {
    match data {
        schema::Data::Blocks(entries) => blocks_text(entries),
        other => format!("{other:?}"),
    }
}

fn work_text(work: &schema::Work) -> String {
    match work {
        schema::Work::Layout { write_id } => format!("release the layout of {}", short(*write_id)),
        schema::Work::Release { write_id, blocks } => {
            format!("release {} blocks of {}", blocks.len(), short(*write_id))
        }
        schema::Work::Free { container, runs } => format!("free {container}: {runs:?}"),
        schema::Work::Parts { upload, used } => {
            format!("drop the parts of {}, used {used:?}", short(*upload))
        }
        schema::Work::Uploads { bucket } => format!("drop the uploads of bucket {bucket}"),
        schema::Work::Session { session } => format!("reclaim session {session}"),
    }
}

fn row_text((table, row_key): &(usize, Vec<u8>), value: &[u8]) -> String {
    fn of<T: DeserializeOwned + Debug>(value: &[u8]) -> String {
        rmp_serde::from_slice::<T>(value).map_or_else(|error| error.to_string(), |row| format!("{row:?}"))
    }
    match TABLES[*table] {
        schema::BUCKET => rmp_serde::from_slice::<schema::BucketRow>(value).map_or_else(
            |error| error.to_string(),
            |row| match row.source {
                None => format!("{} of {}", row.id, row.owner.id.0),
                Some((volume, name)) => {
                    format!("{} of {}, a link to {volume}/{name}", row.id, row.owner.id.0)
                }
            },
        ),
        schema::KEY => KeyRow::decode(row_key, value).map_or_else(
            |error| error.to_string(),
            |row| {
                format!(
                    "{} bytes, write {}, {}",
                    row.head.size,
                    short(row.rest.write_id),
                    data_text(&row.rest.data)
                )
            },
        ),
        schema::LAYOUT => rmp_serde::from_slice::<Vec<BlockEntry>>(value)
            .map_or_else(|error| error.to_string(), |entries| blocks_text(&entries)),
        schema::UPLOAD => rmp_serde::from_slice::<schema::UploadRow>(value).map_or_else(
            |error| error.to_string(),
            |row| format!("{}, completed: {:?}", row.key, row.completed.map(|done| done.etag.to_string())),
        ),
        schema::UPLOAD_DONE => rmp_serde::from_slice::<schema::UploadDoneRow>(value).map_or_else(
            |error| error.to_string(),
            |row| format!("{} at {}", short(row.upload), row.completed_ms),
        ),
        schema::PART => rmp_serde::from_slice::<schema::PartRow>(value).map_or_else(
            |error| error.to_string(),
            |row| format!("{} bytes in {} blocks", row.size, row.blocks.len()),
        ),
        schema::BLOCK => rmp_serde::from_slice::<schema::BlockRow>(value).map_or_else(
            |error| error.to_string(),
            |row| {
                let key = row.key.map_or(String::new(), |key| format!(" for {key}"));
                format!("{:?} by {}{key}, {} references", row.state, short(row.owner), row.references)
            },
        ),
        schema::BLOCK_REF => rmp_serde::from_slice::<schema::BlockRefRow>(value)
            .map_or_else(|error| error.to_string(), |row| format!("{} in {}", row.key, row.bucket)),
        schema::SESSION_NONCE => of::<SessionId>(value),
        schema::BUCKET_ID => value.escape_ascii().to_string(),
        schema::VOLUME => rmp_serde::from_slice::<schema::VolumeRow>(value).map_or_else(
            |error| error.to_string(),
            |row| format!("of {:?}, {} buckets, {:?}", row.owner.0, row.buckets, row.quota),
        ),
        schema::RETIRED => of::<schema::RetiredRow>(value),
        schema::SESSION => rmp_serde::from_slice::<schema::SessionRow>(value).map_or_else(
            |error| error.to_string(),
            |row| format!("ended: {}, low water {}", row.is_ended, row.low_water),
        ),
        schema::LEASE => rmp_serde::from_slice::<schema::LeaseRow>(value).map_or_else(
            |error| error.to_string(),
            |row| format!("{} of {} used, ended: {}", row.used, row.count, row.is_ended),
        ),
        schema::LOAN => rmp_serde::from_slice::<schema::LoanRow>(value).map_or_else(
            |error| error.to_string(),
            |row| {
                let left: u32 = row.left.iter().map(|bits| bits.count_ones()).sum();
                format!("loan {} of session {}, {left} of {} left", row.id, row.session, row.count)
            },
        ),
        schema::DELETED => rmp_serde::from_slice::<schema::DeletedRow>(value)
            .map_or_else(|error| error.to_string(), |row| row.block.to_string()),
        schema::WORK => rmp_serde::from_slice::<schema::WorkRow>(value)
            .map_or_else(|error| error.to_string(), |row| work_text(&row.work)),
        _ => String::new(),
    }
}

fn short(write_id: WriteId) -> String {
    format!("{}.{}", write_id.session, write_id.sequence)
}

fn reply_text(reply: &Reply) -> String {
    match reply {
        Reply::Done => "done\n".to_owned(),
        Reply::Rejected(rejection) => format!("rejected: {rejection}\n"),
        Reply::Lent(lent) => {
            format!("loan {}: {}/{} and {} more\n", lent.id, lent.container, lent.first, lent.count - 1)
        }
        Reply::Bucket(bucket) => format!("bucket {}\n", bucket.id),
        Reply::Committed(committed) => {
            format!("version {} at {}\n", committed.version.index, committed.modified_ms)
        }
        Reply::Deleted(deleted) => {
            let line = |outcome: &Result<(), wire::om::Rejection>| match outcome {
                Ok(()) => "deleted\n".to_owned(),
                Err(rejection) => format!("rejected: {rejection}\n"),
            };
            deleted.outcomes.iter().map(line).collect()
        }
        Reply::Upload(upload) => format!("upload {}\n", short(*upload)),
        Reply::Completed(done) => {
            format!("version {} etag {} {} bytes\n", done.version.index, done.etag, done.size)
        }
        other => format!("{other:?}\n"),
    }
}

fn name_of(text: &str) -> Result<(BucketName, BucketName), Box<dyn Error>> {
    let (volume, name) = text.split_once('/').ok_or("a bucket is VOLUME/NAME")?;
    Ok((BucketName::new(volume)?, BucketName::new(name)?))
}

/// `C/L` or `C/L-L`.
fn blocks_of(text: &str) -> Result<Vec<BlockId>, Box<dyn Error>> {
    let (container, locals) = text.split_once('/').ok_or("a block is CONTAINER/LOCAL")?;
    let (first, last) = locals.split_once('-').unwrap_or((locals, locals));
    let container = container.parse()?;
    let (first, last): (u64, u64) = (first.parse()?, last.parse()?);
    Ok((first..=last).map(|local| block_id(container, local)).collect())
}

fn entries_of(args: &mut ArgumentConsumer<'_>, length: u64) -> Result<Vec<BlockEntry>, Box<dyn Error>> {
    let mut entries = Vec::new();
    while let Some(block) = args.next_pos() {
        entries.extend(blocks_of(block)?.into_iter().map(|block| entry_of(block, length)));
    }
    Ok(entries)
}

/// `absent`, `present`, or the size of the object whose ETag must be there.
fn condition_of(text: Option<&str>) -> Result<WriteCondition, Box<dyn Error>> {
    Ok(match text {
        None => WriteCondition::None,
        Some("absent") => WriteCondition::IfAbsent,
        Some("present") => WriteCondition::IfPresent,
        Some(size) => WriteCondition::IfMatch(etag_of_size(size.parse()?)),
    })
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _context: &Context) -> Outcome {
        let reply = self.run_command(command)?;
        let changes = self.changes();
        invariants::check(&self.core.view(), &self.lent, self.gone);
        Ok(reply + &changes)
    }
}

fn scripts_of(topic: &str) {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts").join(topic);
    let mut paths: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        goldenscript::run(&mut Script::new(), &path).unwrap();
    }
}

#[test]
fn scripts_of_loans() {
    scripts_of("loan");
}

#[test]
fn scripts_of_keys() {
    scripts_of("key");
}

#[test]
fn scripts_of_multipart() {
    scripts_of("multipart");
}

#[test]
fn scripts_of_namespaces() {
    scripts_of("namespace");
}

#[test]
fn scripts_of_containers() {
    scripts_of("container");
}

#[test]
fn scripts_of_buckets() {
    scripts_of("bucket");
}
