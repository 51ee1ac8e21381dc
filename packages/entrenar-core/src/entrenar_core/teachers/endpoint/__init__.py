"""A teacher behind an OpenAI-compatible server, which tells the log-probabilities of the likeliest tokens.

`settings` is what a user says of it, `client` asks over HTTP and asks again, `answers` checks what comes back,
`protocols` knows how servers tell it, `alignment` whether its token ids are the student's, `connecting` finds out which
protocol a server speaks, `source` is the teacher, `fitting` says which losses it can serve, and `scoring` how good it
is.
"""
