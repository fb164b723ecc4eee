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

#[test]
fn a_training_goes_on_whatever_its_fractions_are() {
    let identity = |dropout: f32| json!({ "dropout": dropout, "alpha": 1.0 + dropout, "seed": 7 });
    for hundredths in 1_u8..100 {
        let dropout = f32::from(hundredths) / 100.0;
        let written = identity(dropout).to_string();
        let read = serde_json::from_str(&written).unwrap();
        assert_eq!(difference(&read, &identity(dropout), &[]), None, "{written}");
        let other = identity(dropout.next_up());
        assert_eq!(difference(&read, &other, &[]).as_deref(), Some("dropout"));
    }
    let other = json!({ "seed": u64::MAX - 1 });
    assert!(difference(&json!({ "seed": u64::MAX }), &other, &[]).is_some());
}
