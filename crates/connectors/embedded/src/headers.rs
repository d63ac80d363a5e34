//! Headers as bytes. Version 1: the byte 1, then for each header its name's length (u32,
//! little-endian), the name, its value's length (u32, little-endian; 2^32-1 is null), the value.

use std::fmt;

use brigade_core::Headers;
use bytes::Bytes;

const VERSION: u8 = 1;
/// The header that keeps the bytes of unreadable headers.
const UNREAD: &str = "brigade-headers";
const NULL: u32 = u32::MAX;

/// Encodes headers; no headers give no bytes.
pub(crate) fn encode(headers: &Headers) -> Option<Vec<u8>> {
    if headers.is_empty() {
        return None;
    }
    let mut bytes = vec![VERSION];
    for (name, value) in headers.iter() {
        put(&mut bytes, Some(name.as_bytes()));
        put(&mut bytes, value.map(|value| &value[..]));
    }
    Some(bytes)
}

fn put(bytes: &mut Vec<u8>, part: Option<&[u8]>) {
    let length =
        part.map_or(NULL, |part| u32::try_from(part.len()).expect("a message is far below 4 GiB"));
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(part.unwrap_or_default());
}

/// Why bytes are not headers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    Version(u8),
    Damaged,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(
                f,
                "its headers have version {version}; this program knows version {VERSION}: use the \
                 newer program"
            ),
            Self::Damaged => f.write_str("its headers are damaged"),
        }
    }
}

/// Reads a row's headers: bytes that cannot be decoded become a single header, so that they are not
/// lost.
pub(crate) fn read(bytes: Option<&[u8]>) -> (Headers, Option<Unreadable>) {
    let Some(bytes) = bytes else { return (Headers::new(), None) };
    match decode(bytes) {
        Ok(headers) => (headers, None),
        Err(why) => {
            let mut headers = Headers::new();
            headers.push(UNREAD, Some(Bytes::copy_from_slice(bytes)));
            (headers, Some(why))
        }
    }
}

/// Decodes headers.
pub(crate) fn decode(bytes: &[u8]) -> Result<Headers, Unreadable> {
    match bytes.split_first() {
        Some((&VERSION, list)) => decode_list(list).ok_or(Unreadable::Damaged),
        Some((version, _)) => Err(Unreadable::Version(*version)),
        None => Err(Unreadable::Damaged),
    }
}

fn decode_list(mut rest: &[u8]) -> Option<Headers> {
    let mut headers = Headers::new();
    while !rest.is_empty() {
        let name = take(&mut rest)??;
        let value = take(&mut rest)?;
        headers.push(std::str::from_utf8(name).ok()?, value.map(Bytes::copy_from_slice));
    }
    Some(headers)
}

/// Takes one part; the inner `None` is a null.
fn take<'b>(rest: &mut &'b [u8]) -> Option<Option<&'b [u8]>> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length);
    if length == NULL {
        *rest = after;
        return Some(None);
    }
    let length = usize::try_from(length).ok()?;
    let part = after.get(..length)?;
    *rest = &after[length..];
    Some(Some(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_survive(list in any::<Vec<(String, Option<Vec<u8>>)>>()) {
            let headers: Headers =
                list.into_iter().map(|(name, value)| (name, value.map(Bytes::from))).collect();
            let decoded = encode(&headers).map_or_else(|| Ok(Headers::new()), |b| decode(&b));
            prop_assert_eq!(decoded, Ok(headers));
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in any::<Vec<u8>>()) {
            let _ = decode(&bytes);
        }
    }
}
