//! Listing a bucket, ListObjectsV2: one page, or all of them one after the other.

use http::{HeaderMap, Method};

use crate::client::{Call, S3Client};
use crate::encode;
use crate::error::Error;
use crate::xml;

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Group keys up to the next occurrence of this.
    pub delimiter: Option<String>,
    /// Begin after this key.
    pub start_after: Option<String>,
    /// Entries a page; the server's default if `None`.
    pub max_keys: Option<u32>,
    /// Where the previous page ended.
    pub continuation_token: Option<String>,
}

/// One listed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its key.
    pub key: String,
    /// Its length.
    pub size_bytes: u64,
    /// Its entity tag, quotes included.
    pub etag: String,
    /// When it was written, as the server wrote it.
    pub last_modified: String,
}

/// One page of a listing.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    /// All response headers.
    pub headers: HeaderMap,
    /// Objects in key order.
    pub objects: Vec<ObjectEntry>,
    /// Groups made by the delimiter.
    pub common_prefixes: Vec<String>,
    /// Present if there is more.
    pub next_continuation_token: Option<String>,
}

/// A listing that fetches its pages when asked.
pub struct ListPages<'a> {
    client: &'a S3Client,
    bucket: &'a str,
    request: Option<ListRequest>,
}

impl S3Client {
    /// One page of a listing.
    pub async fn list_objects_v2(&self, bucket: &str, request: &ListRequest) -> Result<ListPage, Error> {
        let max_keys = request.max_keys.map(|count| count.to_string());
        let mut query =
            vec![("list-type", "2"), ("encoding-type", "url"), ("prefix", request.prefix.as_str())];
        let optional = [
            ("delimiter", &request.delimiter),
            ("start-after", &request.start_after),
            ("max-keys", &max_keys),
            ("continuation-token", &request.continuation_token),
        ];
        query.extend(
            optional.into_iter().filter_map(|(name, value)| value.as_deref().map(|value| (name, value))),
        );
        let mut response = self.send(Call::bucket(Method::GET, bucket)?.query(&query)).await?;
        let headers = std::mem::take(&mut response.head.headers);
        let body = response.collect(xml::DOCUMENT_BYTES_MAX).await?;
        Ok(ListPage { headers, ..page(xml::read("ListBucketResult", &body)?)? })
    }

    /// All pages of a listing.
    pub fn list_pages<'a>(&'a self, bucket: &'a str, request: ListRequest) -> ListPages<'a> {
        ListPages { client: self, bucket, request: Some(request) }
    }
}

impl ListPages<'_> {
    /// The next page; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<ListPage>, Error> {
        let Some(request) = self.request.take() else { return Ok(None) };
        let page = self.client.list_objects_v2(self.bucket, &request).await?;
        if let Some(token) = &page.next_continuation_token {
            if request.continuation_token.as_ref() == Some(token) {
                return Err(Error::Response("the listing does not advance".into()));
            }
            self.request = Some(ListRequest { continuation_token: Some(token.clone()), ..request });
        }
        Ok(Some(page))
    }
}

fn page(document: xml::ListBucketResult) -> Result<ListPage, Error> {
    let encoded = document.encoding_type.as_deref() == Some("url");
    let name = |text: String| if encoded { encode::decode_listed(&text) } else { Ok(text) };
    let mut page = ListPage::default();
    for entry in document.contents {
        let key = name(entry.key)?;
        page.objects.push(ObjectEntry {
            key,
            size_bytes: entry.size,
            etag: entry.etag,
            last_modified: entry.last_modified,
        });
    }
    for group in document.common_prefixes {
        page.common_prefixes.push(name(group.prefix)?);
    }
    page.next_continuation_token = match (document.is_truncated, document.next_continuation_token) {
        (true, Some(token)) => Some(token),
        (true, None) => {
            return Err(Error::Response("the listing is truncated but has no continuation token".into()));
        }
        (false, _) => None,
    };
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> xml::ListBucketResult {
        xml::read("ListBucketResult", &bytes::Bytes::from(text.to_owned())).unwrap()
    }

    #[test]
    fn names_are_decoded_only_where_the_server_encoded_them() {
        let entry = "<Contents><Key>a%20b+c</Key><Size>1</Size></Contents>";
        let encoded = format!("<ListBucketResult>{entry}<EncodingType>url</EncodingType></ListBucketResult>");
        assert_eq!(page(document(&encoded)).unwrap().objects[0].key, "a b c");
        let plain = format!("<ListBucketResult>{entry}</ListBucketResult>");
        assert_eq!(page(document(&plain)).unwrap().objects[0].key, "a%20b+c");
    }

    #[test]
    fn truncated_listing_without_token_is_refused() {
        let text = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
        assert!(matches!(page(document(text)), Err(Error::Response(_))));
    }
}
