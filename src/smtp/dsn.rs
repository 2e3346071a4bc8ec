//! Delivery status notifications: what a client may ask for (RFC 3461).

/// `RET=` of MAIL: how much of the message a failure report returns (RFC 3461 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// `FULL`: the whole message.
    Full,
    /// `HDRS`: its header.
    Headers,
}

impl Ret {
    /// The value as it stands in the parameter.
    pub const fn as_str(self) -> &'static str {
        match self {
            Ret::Full => "FULL",
            Ret::Headers => "HDRS",
        }
    }
}

/// `NOTIFY=` of RCPT: when the sender wants a report (RFC 3461 section 4.1). A parameter that was
/// not given is an `Option` of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notify(u8);

impl Notify {
    /// `NEVER`, which stands alone.
    pub const NEVER: Notify = Notify(0);
    /// `SUCCESS`.
    pub const SUCCESS: Notify = Notify(1);
    /// `FAILURE`.
    pub const FAILURE: Notify = Notify(2);
    /// `DELAY`.
    pub const DELAY: Notify = Notify(4);

    /// This and that.
    #[must_use]
    pub const fn and(self, other: Notify) -> Notify {
        Notify(self.0 | other.0)
    }

    /// Whether `other` is among what was asked for.
    pub const fn includes(self, other: Notify) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits, as stored in the spool.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The value with these bits; `None` where there are others.
    pub const fn from_bits(bits: u8) -> Option<Notify> {
        if bits < 8 { Some(Notify(bits)) } else { None }
    }

    /// Appends the value as it stands in the parameter.
    pub fn write(self, out: &mut Vec<u8>) {
        if self == Notify::NEVER {
            return out.extend_from_slice(b"NEVER");
        }
        let names = [(Notify::SUCCESS, "SUCCESS"), (Notify::FAILURE, "FAILURE"), (Notify::DELAY, "DELAY")];
        let mut separator = "";
        for (_, name) in names.iter().filter(|(bit, _)| self.includes(*bit)) {
            out.extend_from_slice(separator.as_bytes());
            out.extend_from_slice(name.as_bytes());
            separator = ",";
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written() {
        let written = |notify: Notify| {
            let mut out = Vec::new();
            notify.write(&mut out);
            String::from_utf8(out).expect("ASCII")
        };
        assert_eq!(written(Notify::NEVER), "NEVER");
        assert_eq!(written(Notify::DELAY), "DELAY");
        assert_eq!(written(Notify::DELAY.and(Notify::SUCCESS)), "SUCCESS,DELAY");
        assert_eq!(Notify::from_bits(Notify::FAILURE.bits()), Some(Notify::FAILURE));
        assert_eq!(Notify::from_bits(8), None);
    }
}
