"""Chat templates with the traits by which models' families are told apart, each as small as can be."""

QWEN = """{%- if tools %}<|im_start|>system
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools> <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

QWEN_THINKING = QWEN.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
)

_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n"
THINK_OPENED = "{# </think> #}" + QWEN.replace(_PROMPT, _PROMPT + "<think>\n")

LLAMA = """{% if tools %}Respond with {"name": function name, "parameters": dictionary}.{% for tool in tools %}
{{ tool | tojson }}{% endfor %}{% endif %}{% for message in messages %}<|start|>{{ message.role }}
{% if message.role == "ipython" %}<|python_tag|>{% endif %}{{ message.content }}{% endfor %}"""

MISTRAL = """{% for message in messages %}{% for call in message.tool_calls or [] %}{% if call.id | length != 9 %}
{{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}{% endif %}
[TOOL_CALLS][{"name": "{{ call.function.name }}", "id": "{{ call.id }}"}]{% endfor %}
{%- if message.role == "tool" %}[TOOL_RESULTS]{{ message.tool_call_id }}{% else %}[INST]{{ message.content }}
{%- endif %}{% endfor %}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}"""

DEEPSEEK = """{% for message in messages %}{% if message['role'] == 'assistant' and message['content'] is none %}
{%- for tool in message['tool_calls'] %}{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type']
 + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments'] + '\\n```' }}
{%- endfor %}{% else %}<｜{{ message['role'] }}｜>{{ message['content'] }}{% endif %}{% endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}"""

PYTHONIC = """{% if tools %}Answer with [func_name1(params_name1=params_value1)].{{ tools | tojson }}{% endif %}
{%- for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"""

PLAIN = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
