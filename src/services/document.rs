pub struct Outcome;
impl Outcome {
    pub fn lost_content(&self) -> bool {
        false
    }
}
impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("")
    }
}
pub fn append_document(_t: Option<&[u8]>, _c: &[u8], out: &mut Vec<u8>) -> Outcome {
    out.extend_from_slice(b"{}");
    Outcome
}
pub fn append_jsonb(t: Option<&[u8]>, out: &mut Vec<u8>) -> Outcome {
    out.extend_from_slice(b"{\"data\":");
    out.extend_from_slice(t.unwrap_or(b"null"));
    out.push(b'}');
    Outcome
}
