"""Whether clients come under TLS, and who logs on."""

from panels import RED, YELLOW, Dashboard, Panel, Row, Stat, quantiles, rate, ratio

BOARD = Dashboard(
    "tls-and-auth", "TLS and AUTH", "Handshakes and logons of inbound connections; those at next hops are on the dashboard Delivery.",
    [
        Row("Now", [
            Stat("Handshakes", "Handshakes completed a second.", "none with STARTTLS offered: see Failures.",
                 [(rate("gatepost_tls_handshakes_total", 'result="completed"'), "completed")], unit="cps", decimals=1, width=6),
            Stat("Handshakes failed", "Share of handshakes that failed.",
                 "scanners fail all the time; a sudden rise is a certificate or a client that has changed: see Failures.",
                 [(ratio(rate("gatepost_tls_handshakes_total", 'result="failed"'), rate("gatepost_tls_handshakes_total")), "failed")],
                 unit="percentunit", above=[(0.1, YELLOW), (0.5, RED)], decimals=1, width=6),
            Stat("Resumed", "Share of handshakes that resumed an earlier session.",
                 "low is no fault: many clients never resume.",
                 [(ratio(rate("gatepost_tls_sessions_total", 'resumed="yes"'), rate("gatepost_tls_sessions_total")), "resumed")], unit="percentunit",
                 decimals=1, width=6),
            Stat("Logons refused", "Share of proofs of AUTH that were refused.",
                 "guessing of passwords: see Logons, and the log for who it is.",
                 [(ratio(rate("gatepost_logons_total", 'result="refused"'), rate("gatepost_logons_total")), "refused")],
                 unit="percentunit", above=[(0.2, YELLOW), (0.5, RED)], decimals=1, width=6),
        ]),
        Row("TLS", [
            Panel("Handshakes by result", "Handshakes of inbound connections per second, by result.",
                  "see Failures for why.", [(rate("gatepost_tls_handshakes_total", by="result"), "{{result}}")], unit="cps",
                  stacked=True),
            Panel("Failures", "Failed handshakes per second, by reason.",
                  "protocol: no version or cipher in common, or a client that rejects the certificate, which may have expired; "
                  "client_gone and timeout: scanners, or the network.",
                  [(rate("gatepost_tls_failures_total", by="reason"), "{{reason}}")], unit="cps", stacked=True),
            Panel("Duration of handshakes", "Time of completed handshakes, with what the client took of it.",
                  "mostly round trips; if loop lag (Process) rises with it, the processor is what is short.",
                  quantiles("gatepost_tls_handshake_seconds", 0.5, 0.9, 0.99), unit="s", above=[(1, YELLOW), (5, RED)]),
            Panel("Versions", "Completed handshakes per second, by version of the protocol.",
                  "older ones than TLS 1.2 are refused and stand under Failures, as protocol.",
                  [(rate("gatepost_tls_sessions_total", by="version"), "{{version}}")], unit="cps", stacked=True, width=12),
            Panel("Resumption", "Completed handshakes per second, by whether an earlier session was resumed.",
                  "a fall to none: something in front spreads clients over instances; every shard of one instance resumes.",
                  [(rate("gatepost_tls_sessions_total", by="resumed"), "resumed: {{resumed}}")], unit="cps", stacked=True, width=12),
        ]),
        Row("AUTH", [
            Panel("Logons by result", "Proofs of AUTH per second, by result.",
                  "refused: wrong passwords; not_here: a user at a binding that it may not use; unavailable: too many wait for their "
                  "password to be computed, or the source has failed too often.",
                  [(rate("gatepost_logons_total", by="result"), "{{result}}")], unit="cps", stacked=True),
            Panel("Logons by mechanism", "Proofs of AUTH per second, by mechanism and result.",
                  "a mechanism with refusals only: a client that is set up wrongly, or guessing.",
                  [(rate("gatepost_logons_total", by="mechanism, result"), "{{mechanism}} {{result}}")], unit="cps", stacked=True),
            Panel("AUTH refused", "Refusals of AUTH and for want of it per second, by reason.",
                  "authentication_required: clients that do not log on at a binding that requires it; tls_required: that do not use "
                  "STARTTLS; mechanism_unrecognized: they know only mechanisms that are not offered here.",
                  [(rate("gatepost_refusals_total", 'reason=~"authentication_.*|mechanism_.*|tls_required|sender_not_permitted"',
                         by="reason"), "{{reason}}")], unit="cps", stacked=True),
        ]),
    ],
)
