//! The tag `{% generation %}`, with which templates mark for training what the model says.

/// The template with that tag replaced by one that changes nothing in the text.
///
/// Only transformers has it; when it renders a prompt, the tag has no effect but to open a scope.
pub(super) fn without_generation(source: &str) -> String {
    let mut rest = source;
    let mut replaced = String::with_capacity(source.len());
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        replaced.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        match name(tag) {
            Some("generation") => replaced.push_str(&tag.replacen("generation", "with", 1)),
            Some("endgeneration") => {
                replaced.push_str(&tag.replacen("endgeneration", "endwith", 1));
            }
            Some(_) | None => replaced.push_str(tag),
        }
        rest = after;
    }
    replaced.push_str(rest);
    replaced
}

/// What stands between the delimiters of a tag.
fn name(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    Some(inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tag_itself_is_replaced() {
        assert_eq!(
            without_generation("a{%- generation -%}b{% endgeneration %}c"),
            "a{%- with -%}b{% endwith %}c"
        );
        let other = "{% if add_generation_prompt %}generation{% endif %}{{ generation }}{% open";
        assert_eq!(without_generation(other), other);
    }
}
