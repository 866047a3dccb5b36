"""What Bitly's API v4 is, as data and pure functions without I/O.

In: a line of text, a query, or the status, headers and body of a response. Out: a bitlink, the path and parameters of a
request, or a verdict, which is what the response means for its call. The rules come from
https://dev.bitly.com/api-reference and, where that is silent or wrong, from recorded responses.
"""
