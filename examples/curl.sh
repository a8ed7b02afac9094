#!/bin/sh
# The HTTP API with nothing but curl. Start a fleet first: make run
#
#   examples/curl.sh                                    the fleet on this machine
#   URL=http://127.0.0.1:8090 MODEL=sim examples/curl.sh
set -eu
URL="${URL:-http://127.0.0.1:8080}"
MODEL="${MODEL:-smollm2-135m-instruct}"

echo "# which models are served"
curl --silent --show-error --fail "$URL/v1/models"
echo

echo "# a chat answer in one piece"
curl --silent --show-error --fail "$URL/v1/chat/completions" -H 'Content-Type: application/json' -d "{
  \"model\": \"$MODEL\",
  \"messages\": [{\"role\": \"user\", \"content\": \"What is the capital of France?\"}],
  \"max_tokens\": 32,
  \"temperature\": 0
}"
echo

echo "# the same, streamed, with the usage at its end"
curl --silent --show-error --fail --no-buffer "$URL/v1/chat/completions" -H 'Content-Type: application/json' -d "{
  \"model\": \"$MODEL\",
  \"messages\": [{\"role\": \"user\", \"content\": \"What is the capital of France?\"}],
  \"max_tokens\": 32,
  \"temperature\": 0,
  \"stream\": true,
  \"stream_options\": {\"include_usage\": true}
}"

echo "# text to be continued, two ways"
curl --silent --show-error --fail "$URL/v1/completions" -H 'Content-Type: application/json' -d "{
  \"model\": \"$MODEL\",
  \"prompt\": \"Once upon a time\",
  \"max_tokens\": 16,
  \"n\": 2,
  \"seed\": 7
}"
echo

echo "# an error says what to mend"
curl --silent --show-error "$URL/v1/chat/completions" -H 'Content-Type: application/json' -d "{
  \"model\": \"$MODEL\",
  \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}],
  \"temprature\": 0
}"
echo
