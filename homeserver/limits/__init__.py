"""How much each caller may do: rate limits by address, account, device and origin server.

Each limit is a token bucket for each subject (``buckets``), with the rate that ``[rate_limits]`` gives it
(``rate_limits``). An endpoint names the limit and the subject; a request beyond it gets M_LIMIT_EXCEEDED. Everything is
in memory, and bounded. What guards accounts is shared by the processes on one database, by notices that are not stored.

https://spec.matrix.org/v1.19/client-server-api/#rate-limiting
"""
