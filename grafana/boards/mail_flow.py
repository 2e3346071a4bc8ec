"""Is mail flowing: the first dashboard to look at."""

from panels import GREEN, RED, YELLOW, Dashboard, Panel, Row, Stat, increase, least, quantiles, rate, total, worst

# Refusals that are no fault of the client: it did all right and has to come again.
OWN_FAULTS = 'reason=~"resources|shard_unavailable|connections_total"'
# What may go so: one in a thousand.
BUDGET = 0.001

_faults = f"({increase('gatepost_refusals_total', OWN_FAULTS)} + {increase('gatepost_connections_refused_total', OWN_FAULTS)})"

BOARD = Dashboard(
    "mail-flow", "mail flow", "Whether mail comes in and leaves, how fast, and what waits.",
    [
        Row("Now", [
            Stat("Ready", "Whether /readyz says that mail is accepted: no as soon as one instance says so.",
                 "`curl HOST:9125/readyz` tells the reason: starting, draining, disk or memory below its watermark, or failing "
                 "storage. See the dashboard Spool and queue.",
                 [(least("gatepost_ready"), "ready")], words={1: ("ready", GREEN), 0: ("not ready", RED)}),
            Stat("Accepted", "Messages acknowledged with 250 a second.",
                 "with connections but no messages, look at Refusals below; without connections, at DNS and the network.",
                 [(rate("gatepost_messages_accepted_total"), "accepted")], unit="cps", decimals=1),
            Stat("Delivered", "Recipients a second that next hops have taken.",
                 "see the dashboard Delivery: next hops down, or refusing.",
                 [(rate("gatepost_delivery_recipients_total", 'outcome="delivered"'), "delivered")], unit="cps", decimals=1),
            Stat("In the queue", "Messages in the queue of all instances.",
                 "see Queue below; `gatepost queue list` names them, and why they wait.",
                 [(total("gatepost_queue_messages"), "messages")], above=[(1000, YELLOW), (10000, RED)]),
            Stat("Oldest message", "Age of the oldest message in any queue, with those that nothing is tried for.",
                 "`gatepost queue list` tells when each arrived. Mail of a next hop that is down goes by itself when it is back.",
                 [(worst("gatepost_queue_oldest_seconds"), "oldest")], unit="s", above=[(3600, YELLOW), (14400, RED)]),
            Stat("Error budget left",
                 f"What is left of the budget over the time shown: {BUDGET:.1%} of messages and connections may be refused for "
                 "reasons of this server's own: disk, memory or storage short, all connections taken, a shard that does not "
                 "answer. Below zero it is overdrawn.",
                 "see Refusals by reason on the dashboard Limits and abuse, for the reasons resources, connections_total and "
                 "shard_unavailable, and mend the first one.",
                 [(f"1 - {_faults} / ({increase('gatepost_messages_accepted_total')} + {_faults}) / {BUDGET}", "left")],
                 unit="percentunit", below=[(0, RED), (0.5, YELLOW)], decimals=1),
        ]),
        Row("Mail", [
            Panel("Messages", "Messages accepted, messages refused after content was read, and recipients delivered, per second.",
                  "accepted far above delivered means that the queue grows: see Delivery. No messages at all while connections come: "
                  "see Refusals.",
                  [(rate("gatepost_messages_accepted_total"), "accepted"),
                   (rate("gatepost_messages_refused_total"), "refused with their content"),
                   (rate("gatepost_delivery_recipients_total", 'outcome="delivered"'), "recipients delivered")], unit="cps"),
            Panel("Octets accepted", "Octets of accepted messages per second, and the mean of a message over them.",
                  "a jump of the mean without one of the messages is a mailing of large messages; --max-message-size and "
                  "--min-free-disk bound what it can do.",
                  [(rate("gatepost_message_accepted_bytes_total"), "accepted")], unit="Bps"),
            Panel("Size of messages", "Median and 99th percentile of the octets of accepted messages.",
                  "no fault by itself; messages above 256 KB have a file of their own until they are synced.",
                  quantiles("gatepost_message_size_bytes"), unit="bytes"),
            Panel("Refusals", "Commands, messages and connections refused per second.",
                  "the dashboard Limits and abuse has them by reason.",
                  [(rate("gatepost_refusals_total"), "in sessions"), (rate("gatepost_connections_refused_total"), "at connect")],
                  unit="cps"),
            Panel("Connections", "Inbound connections now, and those that are kept waiting by --tarpit.",
                  "near --max-connections (5000 unless told otherwise) new clients are refused: see Limits and abuse for whom; "
                  "raise the limit if they are welcome.",
                  [(total("gatepost_connections", by="instance"), "{{instance}}"),
                   (total("gatepost_tarpitted_sessions"), "tarpitted")], above=[(4000, YELLOW), (5000, RED)]),
            Panel("New connections", "Inbound connections per second that were given a session.",
                  "none at all: nobody reaches the server. Check listeners, firewall, balancer, MX records.",
                  [(rate("gatepost_connections_accepted_total", by="instance"), "{{instance}}")], unit="cps"),
        ]),
        Row("Waiting", [
            Panel("Commit latency", "Time from the write of a batch to the end of its sync: what the disk adds to every 250.",
                  "tens of milliseconds are a slow or shared disk: see Spool and queue for the sync itself.",
                  quantiles("gatepost_spool_commit_seconds"), unit="s", above=[(0.1, YELLOW), (0.5, RED)]),
            Panel("Delivery latency", "Time of an outgoing transaction, and the age of messages when they are delivered.",
                  "a slow transaction is a slow next hop; a high age with fast transactions is a queue that was held up.",
                  [*((query, f"transaction {legend}") for query, legend in quantiles("gatepost_delivery_seconds")),
                   *((query, f"age {legend}") for query, legend in quantiles("gatepost_delivery_delay_seconds"))], unit="s"),
            Panel("Queue", "Messages in the queue by instance.",
                  "growth means that less leaves than comes: see Delivery. After an outage it shrinks by itself.",
                  [(total("gatepost_queue_messages", by="instance"), "{{instance}}")], stacked=True),
            Panel("Octets in the queue", "Octets of the messages in the queue, and free space beside them.",
                  "when free space ends, mail is refused at --min-free-disk: bring next hops back, or give the spool space.",
                  [(total("gatepost_queue_bytes"), "queued"), (least("gatepost_free_disk_bytes"), "free, on the fullest disk")],
                  unit="bytes"),
            Panel("Age of the oldest message", "Age of the oldest message by instance.",
                  "a straight line upwards is one message that does not leave: `gatepost queue list` tells when each arrived.",
                  [(worst("gatepost_queue_oldest_seconds", by="instance"), "{{instance}}")], unit="s",
                  above=[(3600, YELLOW), (14400, RED)]),
            Panel("Next hops", "Next hops that are up, and down.",
                  "mail for those that are down waits, or takes the next in failover order: see Delivery.",
                  [(total("gatepost_next_hops", by="state"), "{{state}}")]),
        ]),
    ],
)
