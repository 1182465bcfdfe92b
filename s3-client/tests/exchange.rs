//! How the client treats connections, failures and broken answers, against a scripted server on a loopback port.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use s3_client::{Config, Credentials, Error, ListRequest, Payload, PayloadMode, S3Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One request as the server saw it.
#[derive(Debug, Clone)]
struct Seen {
    connection: usize,
    head: String,
    body: Vec<u8>,
}

/// What the server does with a request.
enum Act {
    Answer(&'static str),
    AnswerAndClose(&'static str),
    Close,
}

struct Server {
    endpoint: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Serves; `script` decides from the number of the request (from 0) what happens to it.
    async fn start(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (log, script) = (Arc::clone(&seen), Arc::new(script));
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, connection, Arc::clone(&log), Arc::clone(&script)));
            }
        });
        Self { endpoint, seen }
    }

    fn config(&self) -> Config {
        let mut config = Config::new(self.endpoint.parse().unwrap());
        config.credentials = Some(Credentials::new("AKID", "secret"));
        config.connections = 2;
        config.attempts = 1;
        config
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    connection: usize,
    log: Arc<Mutex<Vec<Seen>>>,
    script: Arc<impl Fn(usize) -> Act>,
) {
    while let Some((head, body)) = read_request(&mut stream).await {
        let number = {
            let mut log = log.lock().unwrap();
            log.push(Seen { connection, head, body });
            log.len() - 1
        };
        match script(number) {
            Act::Answer(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Act::AnswerAndClose(text) => {
                stream.write_all(text.as_bytes()).await.unwrap();
                return;
            }
            Act::Close => return,
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap().to_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    while bytes.len() < head_end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, bytes[head_end..].to_vec()))
}

const OK: &str = "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 0\r\n\r\n";
const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const BUSY: &str =
    "HTTP/1.1 503 Slow Down\r\nContent-Length: 39\r\n\r\n<Error><Code>SlowDown</Code></Error>   ";
const SHORT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello";

#[tokio::test]
async fn requests_share_a_kept_connection() {
    let server = Server::start(|number| Act::Answer(if number == 0 { OK } else { HELLO })).await;
    let client = S3Client::new(server.config());
    let stored = client.put_object("b", "k", Payload::from(b"body".as_slice())).await.unwrap();
    assert_eq!(stored.etag(), Some("\"e\""));
    assert_eq!(client.get_object("b", "k").await.unwrap().bytes(100).await.unwrap(), "hello");
    assert_eq!(client.get_object("b", "k").await.unwrap().drain().await.unwrap(), 5);
    let seen = server.seen();
    assert!(seen.iter().all(|request| request.connection == 0), "{seen:?}");
    assert_eq!(seen[0].body, b"body");
    assert!(seen[0].head.starts_with("put /b/k http/1.1"));
    assert!(seen[0].head.contains("signedheaders=host;x-amz-content-sha256;x-amz-date"));
}

#[tokio::test]
async fn dropped_response_closes_its_connection() {
    let server = Server::start(|_| Act::Answer(HELLO)).await;
    let client = S3Client::new(server.config());
    drop(client.get_object("b", "k").await.unwrap());
    client.get_object("b", "k").await.unwrap().drain().await.unwrap();
    assert_eq!(server.seen()[1].connection, 1);
}

#[tokio::test]
async fn connections_stay_within_the_limit() {
    let server = Server::start(|_| Act::Answer(HELLO)).await;
    let client = S3Client::new(server.config());
    let mut tasks = Vec::new();
    for _ in 0..16 {
        let client = client.clone();
        tasks.push(tokio::spawn(
            async move { client.get_object("b", "k").await.unwrap().drain().await.unwrap() },
        ));
    }
    for task in tasks {
        assert_eq!(task.await.unwrap(), 5);
    }
    assert!(server.seen().iter().all(|request| request.connection < 2));
}

#[tokio::test]
async fn connection_closed_by_the_server_between_requests_is_replaced() {
    let server = Server::start(|_| Act::AnswerAndClose(HELLO)).await;
    let mut config = server.config();
    config.attempts = 3;
    let client = S3Client::new(config);
    for _ in 0..4 {
        client.get_object("b", "k").await.unwrap().drain().await.unwrap();
    }
}

#[tokio::test]
async fn busy_server_is_asked_again_only_if_allowed() {
    let server = Server::start(|number| Act::Answer(if number < 2 { BUSY } else { OK })).await;
    let mut config = server.config();
    let error = S3Client::new(config.clone()).put_object("b", "k", Payload::empty()).await.unwrap_err();
    assert_eq!(error.kind(), "SlowDown");
    config.attempts = 2;
    S3Client::new(config).put_object("b", "k", Payload::from(b"x".as_slice())).await.unwrap();
    assert_eq!(server.seen().len(), 3);
    assert_eq!(server.seen()[2].body, b"x");
}

#[tokio::test]
async fn stream_is_sent_once() {
    let server = Server::start(|_| Act::Answer(BUSY)).await;
    let mut config = server.config();
    config.attempts = 3;
    let payload = Payload::stream(3, futures_util::stream::iter([Ok(Bytes::from_static(b"abc"))]));
    assert!(S3Client::new(config).put_object("b", "k", payload).await.is_err());
    let seen = server.seen();
    assert_eq!((seen.len(), seen[0].body.as_slice()), (1, b"abc".as_slice()));
    assert!(seen[0].head.contains("x-amz-content-sha256: unsigned-payload"));
}

#[tokio::test]
async fn truncated_body_is_an_error() {
    let server = Server::start(|_| Act::AnswerAndClose(SHORT)).await;
    let client = S3Client::new(server.config());
    let error = client.get_object("b", "k").await.unwrap().drain().await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error}");
}

#[tokio::test]
async fn connection_that_breaks_before_the_answer_is_an_error() {
    let server = Server::start(|_| Act::Close).await;
    let error = S3Client::new(server.config()).head_object("b", "k").await.unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error}");
}

#[tokio::test]
async fn silent_server_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    config.attempts = 1;
    config.response_timeout = std::time::Duration::from_millis(20);
    let error = S3Client::new(config).head_bucket("b").await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error}");
}

#[tokio::test]
async fn absent_server_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut config = Config::new(endpoint.parse().unwrap());
    config.attempts = 1;
    let error = S3Client::new(config).head_bucket("b").await.unwrap_err();
    assert!(error.to_string().contains(&endpoint), "{error}");
}

#[tokio::test]
async fn anonymous_requests_are_plain_http() {
    let server = Server::start(|_| Act::Answer(OK)).await;
    let mut config = server.config();
    config.credentials = None;
    S3Client::new(config).put_object("b", "k", Payload::from(b"x".as_slice())).await.unwrap();
    let head = &server.seen()[0].head;
    assert!(!head.contains("x-amz-") && !head.contains("authorization"), "{head}");
}

#[tokio::test]
async fn signed_and_unsigned_payloads_say_so() {
    let server = Server::start(|_| Act::Answer(OK)).await;
    let mut config = server.config();
    S3Client::new(config.clone()).put_object("b", "k", Payload::from(b"".as_slice())).await.unwrap();
    S3Client::new(config.clone()).put_object("b", "k", Payload::from(b"x".as_slice())).await.unwrap();
    config.payload = PayloadMode::Unsigned;
    S3Client::new(config).put_object("b", "k", Payload::from(b"x".as_slice())).await.unwrap();
    let seen = server.seen();
    assert!(seen[0].head.contains("x-amz-content-sha256: e3b0c442"));
    assert!(seen[0].head.contains("content-length: 0"), "{}", seen[0].head);
    assert!(seen[1].head.contains("x-amz-content-sha256: 2d711642"));
    assert!(seen[2].head.contains("x-amz-content-sha256: unsigned-payload"));
}

#[tokio::test]
async fn range_that_the_server_ignores_is_an_error() {
    let server = Server::start(|_| Act::Answer(HELLO)).await;
    let error = S3Client::new(server.config()).get_object_range("b", "k", 1, Some(2)).await.err().unwrap();
    assert!(matches!(error, Error::Response(_)), "{error}");
    assert!(server.seen()[0].head.contains("range: bytes=1-2"));
}

#[tokio::test]
async fn listing_that_stands_still_ends() {
    const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 123\r\n\r\n<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken></ListBucketResult>         ";
    let server = Server::start(|_| Act::Answer(PAGE)).await;
    let client = S3Client::new(server.config());
    let mut pages = client.list_pages("b", ListRequest::default());
    assert!(pages.next().await.is_ok());
    assert!(matches!(pages.next().await, Err(Error::Response(_))));
}

#[tokio::test]
async fn names_that_would_mean_something_else_are_refused() {
    let server = Server::start(|_| Act::Answer(OK)).await;
    let client = S3Client::new(server.config());
    assert!(matches!(client.delete_object("b", "").await, Err(Error::Request(_))));
    assert!(matches!(client.delete_bucket("").await, Err(Error::Request(_))));
    assert!(server.seen().is_empty());
}
