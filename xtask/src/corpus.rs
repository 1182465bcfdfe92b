//! Objects that are told by their number alone, so that many gigabytes can be written and compared without being kept.
//!
//! An object is a row of slices of one buffer, each from another offset: a chunk that is shifted, repeated or of another
//! object differs.
//!
//! Not here: what happens to them meanwhile (`repair`, `replace`).

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use s3_client::{Payload, S3Client};
use tokio::task::JoinSet;

/// Objects written or read at once.
const CONCURRENCY: usize = 4;
const CHUNK_BYTES: usize = 1 << 20;
/// Strides between chunks and between objects: primes, so that offsets repeat late.
const CHUNK_STRIDE: u64 = 104_729;
const OBJECT_STRIDE: u64 = 15_485_863;

/// So many objects of one size, under one prefix.
#[derive(Debug, Clone)]
pub(crate) struct Corpus {
    prefix: String,
    count: u64,
    object_bytes: u64,
    buffer: Bytes,
}

impl Corpus {
    /// At least `bytes`, in objects of `object_bytes`. Bodies of two prefixes differ.
    pub(crate) fn new(prefix: &str, bytes: u64, object_bytes: u64) -> Self {
        let mut state = prefix.bytes().fold(1_u64, |state, byte| state.wrapping_mul(31) + u64::from(byte));
        let mut buffer = Vec::with_capacity(2 * CHUNK_BYTES);
        while buffer.len() < 2 * CHUNK_BYTES {
            // Knuth's MMIX: the buffer need not be random, only without repetition.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            buffer.extend_from_slice(&(state >> 16).to_be_bytes());
        }
        Self {
            prefix: prefix.to_owned(),
            count: bytes.div_ceil(object_bytes),
            object_bytes,
            buffer: buffer.into(),
        }
    }

    /// Bytes of all objects.
    pub(crate) fn bytes(&self) -> u64 {
        self.count * self.object_bytes
    }

    fn key(&self, number: u64) -> String {
        format!("{}/{number:06}", self.prefix)
    }

    fn chunks(&self, number: u64) -> Vec<Bytes> {
        let chunk = |at: u64| {
            let offset = (number * OBJECT_STRIDE + at * CHUNK_STRIDE) % CHUNK_BYTES as u64;
            let length = (self.object_bytes - at * CHUNK_BYTES as u64).min(CHUNK_BYTES as u64);
            self.buffer.slice(offset as usize..(offset + length) as usize)
        };
        (0..self.object_bytes.div_ceil(CHUNK_BYTES as u64)).map(chunk).collect()
    }

    /// Writes all of it. No request may fail.
    pub(crate) async fn write(&self, client: &S3Client, bucket: &str) -> Result<()> {
        self.each(client, bucket, |corpus, client, bucket, number| async move {
            let key = corpus.key(number);
            let payload = Payload::chunks(corpus.chunks(number));
            client.put_object(&bucket, &key, payload).await.with_context(|| format!("put {key}"))?;
            Ok(())
        })
        .await
    }

    /// Reads all of it and compares every byte.
    pub(crate) async fn compare(&self, client: &S3Client, bucket: &str) -> Result<()> {
        self.each(client, bucket, |corpus, client, bucket, number| async move {
            let key = corpus.key(number);
            let mut answer = client.get_object(&bucket, &key).await.with_context(|| format!("get {key}"))?;
            let mut wanted = corpus.chunks(number).into_iter();
            let mut rest = Bytes::new();
            while let Some(mut got) = answer.chunk().await.with_context(|| format!("read {key}"))? {
                while !got.is_empty() {
                    if rest.is_empty() {
                        rest =
                            wanted.next().with_context(|| format!("{key} is longer than it was written"))?;
                    }
                    let length = got.len().min(rest.len());
                    ensure!(
                        got.split_to(length) == rest.split_to(length),
                        "{key} differs from what was written"
                    );
                }
            }
            ensure!(rest.is_empty() && wanted.next().is_none(), "{key} is shorter than it was written");
            Ok(())
        })
        .await
    }

    async fn each<F>(
        &self,
        client: &S3Client,
        bucket: &str,
        work: impl Fn(Arc<Self>, S3Client, String, u64) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let corpus = Arc::new(self.clone());
        let mut tasks = JoinSet::new();
        for number in 0..self.count {
            if tasks.len() == CONCURRENCY {
                tasks.join_next().await.context("a task")?.context("a task's end")??;
            }
            tasks.spawn(work(corpus.clone(), client.clone(), bucket.to_owned(), number));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.context("a task's end")??;
        }
        Ok(())
    }
}

/// `5GiB`, `300MiB`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let shift = match &text[digits..] {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(format!("{text:?} is no size; write 300MiB or 5GiB")),
    };
    let number: u64 =
        text[..digits].parse().map_err(|_| format!("{text:?} is no size; write 300MiB or 5GiB"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too much"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_differ_and_have_their_length() {
        let corpus = Corpus::new("a", 5 << 20, (2 << 20) + 7);
        assert_eq!(corpus.count, 3);
        let body = |corpus: &Corpus, number| corpus.chunks(number).concat();
        assert_eq!(body(&corpus, 0).len(), (2 << 20) + 7);
        assert_ne!(body(&corpus, 0), body(&corpus, 1));
        assert_ne!(body(&corpus, 0), body(&Corpus::new("b", 5 << 20, (2 << 20) + 7), 0));
        let one = body(&corpus, 0);
        assert_ne!(one[..CHUNK_BYTES], one[CHUNK_BYTES..2 * CHUNK_BYTES]);
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("5GiB"), Ok(5 << 30));
        assert_eq!(parse_size("12"), Ok(12));
        assert!(
            parse_size("5GB").is_err() && parse_size("MiB").is_err() && parse_size("99999999999GiB").is_err()
        );
    }
}
