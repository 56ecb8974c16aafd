//! An upload as the front end reads it, which is not how other multipart bodies are read.
//!
//! It looks for `content`, `checksum-algorithm` and `checksum` in this order and loses every part that stands before the
//! one it finds. The next part must be the file, named `filename`, its disposition the first of its headers; everything
//! up to the closing boundary is the file, further parts included.

use bytes::Bytes;

use crate::wire::{self, Given, Parameters, Refusal, Request};

/// All that comes before the file must stand within so many bytes.
const HEAD: usize = 64 * 1024;
/// How far from its end a body's closing boundary is looked for.
const TAIL: usize = 8 * 1024;
const FIELDS: [&str; 3] = ["content", "checksum-algorithm", "checksum"];
/// Where the front end puts the bytes; the caller cannot name another file.
const TEMPORARY: &str = "/var/tmp/pveupload-0123456789abcdef0123456789abcdef";

/// The parameters of an upload, and its file; `None` when the request is none.
pub(crate) fn read(request: &Request) -> Option<Result<(Parameters, Bytes), Refusal>> {
    let mut path = request.path.split('/').filter(|part| !part.is_empty());
    let is_upload = request.method == "POST"
        && path.next() == Some("nodes")
        && path.nth(1) == Some("storage")
        && path.nth(1) == Some("upload")
        && path.next().is_none();
    is_upload.then(|| {
        let boundary = boundary(request.content_type.as_deref().unwrap_or_default())
            .ok_or(Refusal::Gateway(501, "upload 'Content-Type' not implemented"))?;
        let mut given = wire::form(&request.query);
        let file = split(&request.body, boundary, &mut given)?;
        given.insert("tmpfilename".into(), Given::One(TEMPORARY.into()));
        Ok((given, file))
    })
}

fn boundary(content_type: &str) -> Option<&str> {
    let mut parts = content_type.split([';', ',']).map(str::trim);
    if parts.next() != Some("multipart/form-data") {
        return None;
    }
    parts.find_map(|part| part.strip_prefix("boundary="))
}

fn split(body: &Bytes, boundary: &str, given: &mut Parameters) -> Result<Bytes, Refusal> {
    const FAILED: Refusal = Refusal::Gateway(501, "upload failed");
    let delimiter = format!("--{boundary}\r\n");
    let head = body.slice(..body.len().min(HEAD));
    let mut at = find(&head, delimiter.as_bytes()).ok_or(FAILED)? + delimiter.len();
    let mut fields = Vec::new();
    let file = loop {
        let rest = head.slice(at..);
        let end = find(&rest, b"\r\n\r\n").ok_or(FAILED)?;
        let headers = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
        let data = at + end + 4;
        if headers.contains("; filename=\"") {
            given.insert("filename".into(), Given::One(file_name(&headers)?));
            break data;
        }
        let rest = head.slice(data..);
        let end = find(&rest, delimiter.as_bytes()).ok_or(FAILED)?;
        let value = String::from_utf8_lossy(rest.get(..end).unwrap_or_default());
        fields.push((quoted(&headers, "name").ok_or(FAILED)?, value.trim().to_owned()));
        at = data + end + delimiter.len();
    };
    if !take_in_order(fields, given) {
        return Err(FAILED);
    }
    let closing = format!("--{boundary}--");
    let from = body.len().saturating_sub(TAIL).max(file);
    let end = from + find(&body.slice(from..), closing.as_bytes()).ok_or(FAILED)?;
    let bytes = body.slice(file..end);
    let kept = bytes.strip_suffix(b"\r\n").map_or(bytes.len(), <[u8]>::len);
    Ok(bytes.slice(..kept))
}

fn file_name(headers: &str) -> Result<String, Refusal> {
    let first = headers.lines().next().unwrap_or_default();
    let is_disposition = first.starts_with("Content-Disposition: form-data; name=\"");
    if !is_disposition {
        return Err(Refusal::Gateway(501, "upload failed"));
    }
    if quoted(first, "name").as_deref() != Some("filename") {
        return Err(Refusal::Gateway(
            501,
            "wrong field name for file upload, expected 'filename'",
        ));
    }
    quoted(first, "filename").ok_or(Refusal::Gateway(501, "upload failed"))
}

/// Looks for the fields in the front end's order. Whether none is left that it does not know or was past already.
fn take_in_order(fields: Vec<(String, String)>, given: &mut Parameters) -> bool {
    let mut rest = fields.into_iter().peekable();
    for wanted in FIELDS {
        if !rest.clone().any(|(name, _)| name == wanted) {
            continue;
        }
        if let Some((name, value)) = rest.find(|(name, _)| name == wanted) {
            given.insert(name, Given::One(value));
        }
    }
    rest.peek().is_none()
}

fn quoted(headers: &str, name: &str) -> Option<String> {
    let (_, rest) = headers.split_once(&format!("; {name}=\""))?;
    let (value, _) = rest.split_once('"')?;
    (!value.is_empty()).then(|| value.trim().to_owned())
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(parts: &[&str]) -> Result<(Parameters, Bytes), Refusal> {
        let mut body = String::new();
        for part in parts {
            body.push_str(&format!("--b\r\nContent-Disposition: form-data; {part}\r\n"));
        }
        body.push_str("--b--\r\n");
        let request = Request {
            method: "POST".into(),
            path: "/nodes/pve9/storage/local/upload".into(),
            content_type: Some("multipart/form-data; boundary=b".into()),
            body: body.into(),
            ..Request::default()
        };
        read(&request).unwrap()
    }

    const CONTENT: &str = "name=\"content\"\r\n\r\nimport";
    const CHECKSUM: &str = "name=\"checksum\"\r\n\r\n00ff";
    const ALGORITHM: &str = "name=\"checksum-algorithm\"\r\n\r\nsha256";
    const FILE: &str =
        "name=\"filename\"; filename=\"a.raw\"\r\nContent-Type: application/octet-stream\r\n\r\ndisk\r\n";

    fn names(given: &Parameters) -> Vec<&str> {
        given.keys().map(String::as_str).collect()
    }

    #[test]
    fn fields_are_taken_in_the_front_ends_order_and_lost_in_any_other() {
        let (given, file) = upload(&[CONTENT, ALGORITHM, CHECKSUM, FILE]).unwrap();
        assert_eq!(
            names(&given),
            [
                "checksum",
                "checksum-algorithm",
                "content",
                "filename",
                "tmpfilename"
            ]
        );
        assert_eq!(file, "disk\r\n".as_bytes());
        let (given, _) = upload(&[CHECKSUM, CONTENT, ALGORITHM, FILE]).unwrap();
        assert_eq!(
            names(&given),
            ["checksum-algorithm", "content", "filename", "tmpfilename"]
        );
    }

    #[test]
    fn what_comes_after_the_file_is_taken_for_the_file() {
        let (given, file) = upload(&[FILE, CONTENT]).unwrap();
        assert_eq!(names(&given), ["filename", "tmpfilename"]);
        assert!(file.len() > 50, "{file:?}");
    }

    #[test]
    fn a_field_that_is_not_known_or_another_file_name_is_a_failure() {
        let stranger = "name=\"comment\"\r\n\r\nx";
        let failed = Refusal::Gateway(501, "upload failed");
        assert_eq!(upload(&[CONTENT, stranger, FILE]), Err(failed));
        let other = FILE.replace("name=\"filename\"", "name=\"file\"");
        assert!(upload(&[CONTENT, &other]).is_err());
        assert_eq!(read(&Request::default()), None);
    }
}
