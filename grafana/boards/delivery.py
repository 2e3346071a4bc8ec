"""Whether mail leaves, and what next hops say to it."""

from panels import RED, YELLOW, Dashboard, Panel, Row, Stat, increase, quantiles, rate, ratio, total

_given_up = rate("gatepost_delivery_recipients_total", 'outcome=~"failed|expired"')

BOARD = Dashboard(
    "delivery", "delivery", "Transactions with next hops, what came of them, and the wait of acknowledgements for them.",
    [
        Row("State", [
            Stat("Next hops down", "Next hops that are down, of all instances.",
                 "the log tells why: no connection, no TLS that can be verified, a refused logon. One connection tries it again after "
                 "--retry-min, up to --retry-max.",
                 [(total("gatepost_next_hops", 'state="down"'), "down")], above=[(1, RED)]),
            Stat("Next hops up", "Next hops that are up, of all instances.", "none: all mail waits in the queue.",
                 [(total("gatepost_next_hops", 'state="up"'), "up")], below=[(1, RED)]),
            Stat("Delivered", "Recipients a second that next hops have taken.", "see Recipients below.",
                 [(rate("gatepost_delivery_recipients_total", 'outcome="delivered"'), "delivered")], unit="cps", decimals=1),
            Stat("Given up", "Share of recipients that were refused for good or became too old, of all that came to an end.",
                 "`gatepost queue list` shows them as failed or expired, with the next hop's reply.",
                 [(ratio(_given_up, rate("gatepost_delivery_recipients_total", 'outcome!="deferred"')), "given up")],
                 unit="percentunit", above=[(0.05, YELLOW), (0.2, RED)], decimals=1),
            Stat("Possible duplicates", "Times in the time shown that a message may be delivered twice.",
                 "next_hop_silent: the next hop takes mail and does not say so; client_gone: clients do not wait for the 250.",
                 [(increase("gatepost_possible_duplicates_total"), "possible")], above=[(10, YELLOW), (1000, RED)], decimals=0),
            Stat("Panics of delivery", "Outgoing connections ended by a defect of this program, in the time shown.",
                 "the message is tried again; report the line that standard error has.",
                 [(increase("gatepost_delivery_panics_total"), "panics")], above=[(1, RED)], decimals=0),
        ]),
        Row("What comes of it", [
            Panel("Attempts", "Transactions with next hops per second, by outcome.",
                  "lost: connections break, look at the network and the next hop's log; deferred: it refuses for now; failed: for good.",
                  [(rate("gatepost_delivery_attempts_total", by="outcome"), "{{outcome}}")], unit="cps", stacked=True),
            Panel("Recipients", "What attempts came to per second, by recipient and outcome.",
                  "expired: a next hop was away for --queue-lifetime; failed: it refuses recipients that were accepted here, let it say "
                  "so in time with --ack-delay.",
                  [(rate("gatepost_delivery_recipients_total", by="outcome"), "{{outcome}}")], unit="cps", stacked=True),
            Panel("Possible duplicates", "Times per second that a message may be delivered twice, by window.",
                  "next_hop_silent: raise --next-hop-timeout or mend the next hop; client_gone: lower --ack-delay below what clients wait.",
                  [(rate("gatepost_possible_duplicates_total", by="window"), "{{window}}")], unit="cps", stacked=True),
            Panel("Time of a transaction", "Time from the first command of an outgoing transaction to its last reply.",
                  "a slow next hop: at most 20 transactions at once go to it, so that this bounds what leaves.",
                  quantiles("gatepost_delivery_seconds", 0.5, 0.9, 0.99), unit="s"),
            Panel("Age at delivery", "Age of messages when they are delivered.",
                  "seconds to hours: they were deferred or had to queue; see Deliveries on the dashboard Spool and queue.",
                  quantiles("gatepost_delivery_delay_seconds", 0.5, 0.9, 0.99), unit="s"),
            Panel("Deliveries that wait", "Deliveries that are to be made, by state.",
                  "see Spool and queue.", [(total("gatepost_queue_deliveries", by="state"), "{{state}}")], stacked=True),
        ]),
        Row("Connections to next hops", [
            Panel("Next hops", "Next hops, by instance and state.", "the log tells which and why.",
                  [(total("gatepost_next_hops", by="instance, state"), "{{instance}} {{state}}")]),
            Panel("Open connections", "Connections to next hops that are past their hello.",
                  "at most 20 for each next hop and instance: all in use with much ready in the queue is a slow next hop.",
                  [(total("gatepost_next_hop_open_connections", by="instance"), "{{instance}}")]),
            Panel("Connections opened", "Connections to next hops per second, by result.",
                  "failed: no connection, no greeting, or no hello; the log tells which next hop.",
                  [(rate("gatepost_next_hop_connections_total", by="result"), "{{result}}")], unit="cps", stacked=True),
            Panel("Transactions by connection", "Transactions begun per second, on a new connection or a reused one.",
                  "all new under load: the next hop closes after each message.",
                  [(rate("gatepost_next_hop_transactions_total", by="connection"), "{{connection}}")], unit="cps", stacked=True),
            Panel("TLS at next hops", "TLS handshakes with next hops per second, by result.",
                  "failed with tls=required: its certificate cannot be verified, mail waits; with tls=optional mail goes in clear.",
                  [(rate("gatepost_next_hop_tls_handshakes_total", by="result"), "{{result}}")], unit="cps", stacked=True),
            Panel("AUTH at next hops", "Logons at next hops per second, by mechanism and result.",
                  "failed: the password of auth-file is no longer right there; mail waits.",
                  [(rate("gatepost_next_hop_logons_total", by="mechanism, result"), "{{mechanism}} {{result}}")], unit="cps",
                  stacked=True),
        ]),
        Row("Acknowledgement delay", [
            Panel("Why the wait ended", "Acknowledgements per second, by why they waited no longer for the next hop, or never did.",
                  "limit: the next hop takes longer than --ack-delay; queued: all its transactions are in use; next_hop_down: it is.",
                  [(rate("gatepost_ack_delays_total", by="reason"), "{{reason}}")], unit="cps", stacked=True, width=12),
            Panel("Wait of acknowledgements", "Time that acknowledgements waited for the next hop, of those that did.",
                  "clients wait so long for their 250, and may give up: lower --ack-delay.",
                  quantiles("gatepost_ack_delay_seconds", 0.5, 0.9, 0.99), unit="s", width=12),
        ]),
    ],
)
