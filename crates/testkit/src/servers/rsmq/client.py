"""The Python client `PyRSMQ`, driven by lines of JSON: an operation and its arguments in, what came of it out."""
import json
import sys

from redis import Redis
from rsmq import RedisSMQ

rsmq = RedisSMQ(client=Redis(port=int(sys.argv[1]), decode_responses=True))

for line in sys.stdin:
    options = json.loads(line)
    operation = options.pop("op")
    try:
        answer = {"ok": getattr(rsmq, operation)(**options).execute()}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer, default=list), flush=True)
