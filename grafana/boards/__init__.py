"""The dashboards, each in a module of its own."""

from . import delivery, limits_and_abuse, mail_flow, process, spool_and_queue, tls_and_auth

BOARDS = [module.BOARD for module in (mail_flow, limits_and_abuse, spool_and_queue, delivery, tls_and_auth, process)]
