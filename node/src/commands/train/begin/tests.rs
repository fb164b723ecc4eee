//! Trainings that go on, and texts that do not fit.

use super::*;

#[test]
fn a_text_that_no_message_holds_is_refused_with_how_long_it_may_be() {
    let text = |tokens| Example::of_text(vec![7; tokens]);
    let check = |tokens, prompt| check_lengths(&(vec![text(3)], vec![text(tokens)]), prompt, 20);
    assert!(check(21, 0).is_ok() && check(17, 4).is_ok());
    let refused = check(18, 4).unwrap_err().to_string();
    assert!(refused.contains("--max-tokens 17"), "{refused}");
    assert!(check(22, 0).is_err());
}
