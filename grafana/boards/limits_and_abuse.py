"""Who is refused and why."""

from panels import RED, YELLOW, Dashboard, Panel, Row, quantiles, rate, total

BOARD = Dashboard(
    "limits-and-abuse", "limits and abuse",
    "What is refused, by which reason and limit, and what clients do. Addresses are not in the metrics: the log has them.",
    [
        Row("Refusals", [
            Panel("Refusals by reason", "Refusals inside sessions per second, by reason; docs/metrics.md has the reply of each.",
                  "relay_denied and command_unrecognized are scanners, kept slow by --tarpit. resources is this server's own fault: "
                  "disk, memory or storage. authentication_failed is guessing of passwords.",
                  [(rate("gatepost_refusals_total", by="reason") + " > 0", "{{reason}}")], unit="cps", stacked=True, width=12),
            Panel("Connections refused", "Connections refused in place of a banner per second, by reason.",
                  "connections_total: --max-connections is reached; connections_per_source: one source opens too many; "
                  "shard_unavailable: a shard hangs, see Process; resources: see Spool and queue.",
                  [(rate("gatepost_connections_refused_total", by="reason") + " > 0", "{{reason}}")], unit="cps", stacked=True,
                  width=12),
            Panel("Limits hit", "Times per second that a limit was what refused, by the option that sets it.",
                  "if welcome clients meet a limit, raise that option; if it is abuse, the limit does its work.",
                  [(rate("gatepost_limit_hits_total", by="limit") + " > 0", "{{limit}}")], unit="cps", stacked=True),
            Panel("Messages refused", "Messages per second that were refused after their content was read, by reason.",
                  "message_size: clients that do not look at SIZE; hop_count: a mail loop, find it by the Received fields that the "
                  "log's sender sees; next_hop: the next hop refused, and its client was told.",
                  [(rate("gatepost_messages_refused_total", by="reason") + " > 0", "{{reason}}")], unit="cps", stacked=True),
            Panel("Octets refused", "Octets read per second of messages that were refused, by reason.",
                  "much of message_size: clients send large messages for nothing; a block for a time stops them earlier.",
                  [(rate("gatepost_message_refused_bytes_total", by="reason") + " > 0", "{{reason}}")], unit="Bps", stacked=True),
            Panel("Block list lookups", "Clients looked up in DNS block lists per second, by result.",
                  "failed: a list or the resolver does not answer, or refuses to (lists do so to public resolvers), and nobody is found "
                  "on it; skipped: more clients come than are looked up in time.",
                  [(rate("gatepost_dnsbl_lookups_total", by="result"), "{{result}}")], unit="cps", stacked=True),
        ]),
        Row("Connections", [
            Panel("Connections now", "Inbound connections by instance.",
                  "near --max-connections (5000 unless told otherwise): find who opens them in the log, block or raise the limit.",
                  [(total("gatepost_connections", by="instance"), "{{instance}}")], above=[(4000, YELLOW), (5000, RED)]),
            Panel("Sessions ended", "Sessions ended per second, by what ended them.",
                  "much inactivity_timeout or client_gone: clients or the network fail, or a balancer checks; tls_failed: see TLS and "
                  "AUTH; defect: see Panics on the dashboard Process.",
                  [(rate("gatepost_sessions_ended_total", by="reason") + " > 0", "{{reason}}")], unit="cps", stacked=True),
            Panel("Duration of sessions", "Median and 99th percentile of the time from accept to the end.",
                  "near --connection-timeout (5 minutes) clients hold on to connections; --inactivity-timeout is what bounds that.",
                  quantiles("gatepost_session_seconds"), unit="s"),
            Panel("PROXY headers", "PROXY headers per second, by result.",
                  "not_allowed: who connects is not in the binding's proxy= list; malformed: it is no proxy, or speaks without header; "
                  "timeout and closed: a balancer's health checks without header.",
                  [(rate("gatepost_proxy_headers_total", by="result"), "{{result}}")], unit="cps", stacked=True),
            Panel("Accept pauses", "Times per second that a listener paused, as the system had no descriptors or memory.",
                  "raise RLIMIT_NOFILE (see Process for descriptors in use), or find what else takes them.",
                  [(rate("gatepost_accept_pauses_total", by="instance"), "{{instance}}")], unit="cps", above=[(0.01, RED)]),
            Panel("Memory of arriving messages", "Octets of messages that are arriving now; beyond 256 MB they go to files early.",
                  "many clients that send slowly; it is bounded, and shrinks with them.",
                  [(total("gatepost_body_memory_bytes", by="instance"), "{{instance}}")], unit="bytes"),
        ]),
        Row("Tarpit", [
            Panel("Held back", "Sessions whose replies are held back now.",
                  "many at once are scanners or a spam run; they cost no thread, and count as connections.",
                  [(total("gatepost_tarpitted_sessions", by="instance"), "{{instance}}")]),
            Panel("Tarpit waits", "Times per second that something was held back, by what.",
                  "welcome clients among them (the log names them) send what is refused for good: mend their recipients.",
                  [(rate("gatepost_tarpit_waits_total", by="what"), "{{what}}")], unit="cps", stacked=True),
            Panel("Tarpit skips", "Times per second that something due late was not held back, by reason.",
                  "crowded: more are being kept waiting than there is room for; block the sources, or shorten --tarpit.",
                  [(rate("gatepost_tarpit_skips_total", by="reason"), "{{reason}}")], unit="cps", stacked=True),
        ]),
        Row("Dialogue", [
            Panel("Commands", "Commands read per second, by verb; unknown is every verb that is none.",
                  "much unknown: something that is no mail client. Many RCPT for each MAIL: an address harvest, see relay_denied and "
                  "too_many_recipients above.",
                  [(rate("gatepost_commands_total", by="verb") + " > 0", "{{verb}}")], unit="cps", stacked=True, width=12),
            Panel("Replies", "Replies said per second, by code.",
                  "421 and 451, 452 tell clients to come again: see the reasons above; 5yz refuse for good.",
                  [(rate("gatepost_replies_total", by="code") + " > 0", "{{code}}")], unit="cps", stacked=True, width=12),
        ]),
        Row("Logons", [
            Panel("Logon failures", "Proofs of AUTH that were not accepted per second, by mechanism and result.",
                  "a storm of refused is guessing: --logon-failure-rate holds it down for each source; block those that the log names.",
                  [(rate("gatepost_logons_total", 'result!="accepted"', by="mechanism, result"), "{{mechanism}} {{result}}")],
                  unit="cps", stacked=True, width=12),
            Panel("Sessions ended for abuse", "Sessions per second ended by too many errors, failed logons or messages.",
                  "the log has the clients; `gatepost block add` keeps them out for a time.",
                  [(rate("gatepost_sessions_ended_total", 'reason=~"protocol_errors|logon_failures|message_rate|user_message_rate"',
                         by="reason"), "{{reason}}")], unit="cps", stacked=True, width=12),
        ]),
    ],
)
