//! XML in and out.
//!
//! Bodies are read into a small tree: quick-xml parses, and everything S3 does not need is refused here: document types,
//! processing instructions, entities of a document's own, depth, size. Element names are compared without their namespace.
//!
//! Invariants:
//! * Work and memory are linear in a body whose size the caller has bounded.
//! * What is written is well-formed for any text: characters that XML 1.0 cannot hold become character references, as in
//!   AWS's listings, and clients that cannot read them ask for `encoding-type=url`.
//!
//! Not here: what the elements mean (the handlers).

use bytes::Bytes;
use quick_xml::Reader;
use quick_xml::events::Event;

use crate::error::S3Error;

/// S3's namespace.
pub(crate) const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
/// Bytes of an XML body at most.
pub(crate) const XML_BYTES_MAX: usize = 1 << 20;
/// Bytes of a DeleteObjects body at most: 1,000 keys of 1,024 bytes, percent- or entity-coded.
pub(crate) const DELETE_XML_BYTES_MAX: usize = 2 << 20;
/// Elements inside each other at most: S3's deepest body has six.
const DEPTH_MAX: usize = 16;

/// An element of a body.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    /// Its name without namespace.
    pub(crate) name: String,
    /// Its text, without that of its children.
    pub(crate) text: String,
    /// Its children in order.
    pub(crate) children: Vec<Element>,
}

impl Element {
    /// The first child of that name.
    pub(crate) fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text of the first child of that name.
    pub(crate) fn child_text(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }

    /// All children of that name.
    pub(crate) fn children_named(&self, name: &'static str) -> impl Iterator<Item = &Element> {
        self.children.iter().filter(move |child| child.name == name)
    }
}

/// Reads a body whose root must have that name.
pub(crate) fn read(body: &[u8], root: &str) -> Result<Element, S3Error> {
    let text = std::str::from_utf8(body).map_err(|_| S3Error::malformed_xml())?;
    let element = parse(text.trim_start_matches('\u{feff}')).ok_or_else(S3Error::malformed_xml)?;
    if element.name == root { Ok(element) } else { Err(S3Error::malformed_xml()) }
}

/// None: malformed, or more than S3 needs.
fn parse(text: &str) -> Option<Element> {
    let mut reader = Reader::from_str(text);
    let config = reader.config_mut();
    config.expand_empty_elements = true;
    config.check_end_names = true;
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => {
                if open.len() == DEPTH_MAX || (open.is_empty() && root.is_some()) {
                    return None;
                }
                let name = start.local_name().as_ref().to_owned();
                open.push(Element { name, ..Element::default() });
            }
            Event::End(_) => {
                let element = open.pop()?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => root = Some(element),
                }
            }
            Event::Text(text) => add_text(&mut open, &text.xml10_content())?,
            Event::CData(data) => add_text(&mut open, &data.xml10_content())?,
            Event::GeneralRef(reference) => {
                let character = match reference.resolve_char_ref().ok()? {
                    Some(character) => character,
                    None => match &*reference {
                        "lt" => '<',
                        "gt" => '>',
                        "amp" => '&',
                        "apos" => '\'',
                        "quot" => '"',
                        _ => return None,
                    },
                };
                add_text(&mut open, character.encode_utf8(&mut [0; 4]))?;
            }
            Event::Comment(_) | Event::Decl(_) => {}
            Event::Empty(_) | Event::PI(_) | Event::DocType(_) => return None,
            Event::Eof => return if open.is_empty() { root } else { None },
        }
    }
}

/// Text outside the root may be white space only.
fn add_text(open: &mut [Element], text: &str) -> Option<()> {
    match open.last_mut() {
        Some(element) => element.text.push_str(text),
        None if text.trim().is_empty() => {}
        None => return None,
    }
    Some(())
}

/// Writes a document.
#[derive(Debug)]
pub(crate) struct XmlWriter {
    out: String,
}

impl XmlWriter {
    /// Begins with the declaration.
    pub(crate) fn new() -> Self {
        Self::with_capacity(512)
    }

    /// As [`Self::new`], with room for so many bytes.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        let mut out = String::with_capacity(bytes);
        out.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        Self { out }
    }

    /// Begins a document whose root lies in S3's namespace.
    pub(crate) fn of(root: &str) -> Self {
        let mut writer = Self::new();
        writer.root(root);
        writer
    }

    /// `<name xmlns="...">`.
    pub(crate) fn root(&mut self, name: &str) {
        for piece in ["<", name, " xmlns=\"", NAMESPACE, "\">"] {
            self.out.push_str(piece);
        }
    }

    /// `<name>`.
    pub(crate) fn open(&mut self, name: &str) {
        for piece in ["<", name, ">"] {
            self.out.push_str(piece);
        }
    }

    /// `</name>`.
    pub(crate) fn close(&mut self, name: &str) {
        for piece in ["</", name, ">"] {
            self.out.push_str(piece);
        }
    }

    /// `<name>text</name>`.
    pub(crate) fn text(&mut self, name: &str, text: &str) {
        self.open(name);
        self.escaped(text);
        self.close(name);
    }

    /// `<name>text</name>` for text that only repeats what the client knows, such as the key of an error: characters that XML
    /// cannot hold are replaced, since a strict parser would refuse the whole answer for a reference to one. Listings do
    /// not use this: there a wrong name is worse than an unreadable page.
    pub(crate) fn echo(&mut self, name: &str, text: &str) {
        if text.contains(|character| escape(character) == Some("") && character != '\r') {
            let shown: String = text
                .chars()
                .map(|character| match escape(character) {
                    Some("") if character != '\r' => char::REPLACEMENT_CHARACTER,
                    _ => character,
                })
                .collect();
            return self.text(name, &shown);
        }
        self.text(name, text);
    }

    /// `<name>number</name>`.
    pub(crate) fn number(&mut self, name: &str, number: u64) {
        self.text(name, &number.to_string());
    }

    /// `<name>true</name>` or `false`.
    pub(crate) fn boolean(&mut self, name: &str, value: bool) {
        self.text(name, if value { "true" } else { "false" });
    }

    /// Text that is XML already.
    pub(crate) fn raw(&mut self, xml: &str) {
        self.out.push_str(xml);
    }

    /// The document.
    pub(crate) fn finish(self) -> Bytes {
        Bytes::from(self.out)
    }

    /// Text, escaped.
    pub(crate) fn escaped(&mut self, text: &str) {
        let mut rest = text;
        while let Some(at) = rest.find(|character| escape(character).is_some()) {
            self.out.push_str(&rest[..at]);
            let character = rest[at..].chars().next().expect("find answers the start of a character");
            match escape(character) {
                Some("") | None => self.out.push_str(&format!("&#x{:x};", u32::from(character))),
                Some(entity) => self.out.push_str(entity),
            }
            rest = &rest[at + character.len_utf8()..];
        }
        self.out.push_str(rest);
    }
}

/// None: as it is. Empty: as a character reference.
fn escape(character: char) -> Option<&'static str> {
    match character {
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '&' => Some("&amp;"),
        '"' => Some("&quot;"),
        // Parsers turn a bare carriage return into a newline; tabs and newlines survive in text.
        '\t' | '\n' => None,
        '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => Some(""),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(body: &str) -> Option<String> {
        read(body.as_bytes(), "a").ok().map(|element| element.text)
    }

    #[test]
    fn reads_elements_text_and_references() {
        let body = "<?xml version=\"1.0\"?>\n<!-- c --><s:Delete xmlns:s=\"x\"><Quiet/><Object><Key>a&amp;b&#x41;<![CDATA[<c>]]></Key></Object></s:Delete>\n";
        let root = read(body.as_bytes(), "Delete").unwrap();
        assert_eq!(root.child_text("Quiet"), Some(""));
        let object = root.children_named("Object").next().unwrap();
        assert_eq!(object.child_text("Key"), Some("a&bA<c>"));
        assert_eq!(text_of("<a> x </a>").as_deref(), Some(" x "));
    }

    #[test]
    fn refuses_what_s3_does_not_need() {
        let deep = "<a>".repeat(DEPTH_MAX + 1) + &"</a>".repeat(DEPTH_MAX + 1);
        for body in [
            "",
            "text",
            "<a>",
            "<a></b>",
            "</a>",
            "<a/><a/>",
            "<a/>x",
            "<b/>",
            "<!DOCTYPE a><a/>",
            "<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>",
            "<a>&x;</a>",
            "<a>&#xffffffff;</a>",
            "<a><?php ?></a>",
            "<a",
            "<a b=></a",
            deep.as_str(),
        ] {
            assert_eq!(read(body.as_bytes(), "a").unwrap_err().code, "MalformedXML", "{body}");
        }
        assert!(read(b"<a>\xff</a>", "a").is_err());
    }

    #[test]
    fn control_characters_become_references() {
        let mut writer = XmlWriter::new();
        writer.text("a", "<&>\"\0\u{1}\r\n\t\u{fffe}");
        writer.echo("b", "\u{1}\r<");
        let body = writer.finish();
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.ends_with("<b>\u{fffd}&#xd;&lt;</b>"), "{text}");
        assert!(text.contains("<a>&lt;&amp;&gt;&quot;&#x0;&#x1;&#xd;\n\t&#xfffe;</a>"), "{text}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_written_and_read_back(text in "(?s).{0,200}") {
            // NUL alone is no character even as a reference.
            let text = text.replace('\0', "");
            let mut writer = XmlWriter::new();
            writer.text("a", &text);
            let body = writer.finish();
            proptest::prop_assert_eq!(read(&body, "a").map(|element| element.text), Ok(text));
        }

        #[test]
        fn any_bytes_are_read_without_panic(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            drop(read(&body, "a"));
        }

        #[test]
        fn anything_like_xml_is_read_without_panic(
            pieces in proptest::collection::vec(
                proptest::sample::select(vec![
                    "<a>", "</a>", "<a/>", "<b x='y'>", "</b>", "&lt;", "&#x41;", "&x;", "<![CDATA[", "]]>", "<!--", "-->",
                    "<?xml version='1.0'?>", "<!DOCTYPE a>", "text", "<", ">", "&", "\u{feff}", "xmlns:s='u'", "<s:a>", "</s:a>",
                ]),
                0..40,
            )
        ) {
            let body = pieces.concat();
            if let Ok(element) = read(body.as_bytes(), "a") {
                proptest::prop_assert_eq!(element.name, "a");
            }
        }
    }
}
