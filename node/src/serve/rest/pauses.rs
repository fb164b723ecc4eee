//! Why a server pauses; it does as long as there is one reason.

use std::fmt;

use tokio::sync::watch;

/// The reasons that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::serve) struct Pauses {
    /// Its host has said so.
    pub(in crate::serve) told: bool,
    /// It is outside of its hours.
    pub(super) hours: bool,
    /// Other programs use the machine.
    pub(super) load: bool,
}

impl Pauses {
    /// Whether there is one.
    pub(in crate::serve) const fn any(self) -> bool {
        self.told || self.hours || self.load
    }

    /// Changes one, and says whether that changed anything.
    pub(in crate::serve) fn set(
        pauses: &watch::Sender<Self>,
        change: impl FnOnce(&mut Self),
    ) -> bool {
        pauses.send_if_modified(|pauses| {
            let before = *pauses;
            change(pauses);
            *pauses != before
        })
    }
}

impl fmt::Display for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = [
            (self.told, "its host has said so"),
            (self.hours, "it is outside of its hours"),
            (self.load, "other programs use the machine"),
        ];
        let reasons = reasons.iter().filter(|(holds, _)| *holds).map(|(_, why)| *why);
        f.write_str(&reasons.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_enough_and_all_are_named() {
        let pauses = watch::Sender::new(Pauses::default());
        assert!(!pauses.borrow().any());
        assert!(Pauses::set(&pauses, |pauses| pauses.hours = true));
        assert!(!Pauses::set(&pauses, |pauses| pauses.hours = true), "it was so before");
        assert!(Pauses::set(&pauses, |pauses| pauses.load = true));
        let both = *pauses.borrow();
        assert_eq!(both.to_string(), "it is outside of its hours, other programs use the machine");
        assert!(Pauses::set(&pauses, |pauses| pauses.hours = false));
        assert!(pauses.borrow().any());
        assert!(Pauses::set(&pauses, |pauses| pauses.load = false));
        assert!(!pauses.borrow().any());
    }
}
