"""Every keyword alone and beside those that it meets in practice."""

# ruff: noqa: E501 - a line for each keyword
# fmt: off
from typing import Any

SCHEMAS: list[Any] = [
True,{}, {"type":"null"},{"type":"boolean"},{"type":"string"},{"type":"number"},{"type":"integer"},{"type":"array"},{"type":"object"},
{"type":"string","maxLength":5},{"maxLength":5},{"minLength":3,"type":"string"},{"type":"string","minLength":2,"maxLength":40},{"type":"string","pattern":"^[a-z]+$"},{"type":"string","pattern":"foo"},{"type":"string","pattern":"^a.*b$","maxLength":20},{"type":"string","pattern":"^[a-z]+$","minLength":3,"maxLength":10},
{"type":"string","format":"date-time"},{"type":"string","format":"email","maxLength":30},{"type":"string","format":"wat"},{"format":"uuid"},
{"type":"integer","minimum":3,"maximum":17},{"type":"number","minimum":0,"maximum":1},{"type":"number","exclusiveMinimum":-2.5,"exclusiveMaximum":13.75},{"type":"integer","minimum":-500,"maximum":10000},{"minimum":10**30},{"type":"integer","multipleOf":7},{"type":"number","multipleOf":0.01},{"type":"integer","multipleOf":5,"minimum":12,"maximum":99},{"multipleOf":100000,"type":"integer"},{"type":"number","multipleOf":0.5,"maximum":10},
{"type":"integer","not":{"multipleOf":3}},{"not":{"type":"string"}},{"not":{"type":"integer"},"type":"number"},{"type":"string","not":{"enum":["a","bb"]}},{"type":"string","not":{"pattern":"^a"}},
{"enum":[1,"a",None,{"x":[1,2]}]},{"const":{"a":1}},{"enum":[1,2,"x"],"type":"string"},{"enum":["a","abc","abcd"],"minLength":3},
{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"}},"required":["b"]},
{"properties":{"a":{"type":"integer"}}},
{"type":"object","properties":{"a":True,"b":False},"required":["a"]},
{"type":"object","additionalProperties":{"type":"integer"},"minProperties":1,"maxProperties":3},{"type":"object","additionalProperties":{"type":"integer"},"minProperties":3},
{"type":"object","properties":{"a":{"type":"integer"}},"additionalProperties":{"type":"string"}},
{"type":"object","properties":{"foo":{"type":"integer"},"fob":{"type":"integer"}},"additionalProperties":True,"required":["x"]},
{"type":"object","patternProperties":{"^x-":{"type":"integer"},"y$":{"maximum":10}},"additionalProperties":False},
{"type":"object","propertyNames":{"pattern":"^[a-z]{2,4}$"}},{"type":"object","propertyNames":{"enum":["a","b"]},"additionalProperties":{"type":"null"}},
{"type":"object","properties":{"a":{},"b":{},"c":{}},"minProperties":2,"maxProperties":2,"additionalProperties":False},
{"type":"object","properties":{"a":{"const":1},"b":{"const":2}},"dependentRequired":{"a":["b"]}},
{"type":"object","properties":{"a":{"const":1},"b":{"const":2}},"dependentSchemas":{"a":{"properties":{"b":{"const":2},"c":{"type":"null"}},"required":["c"]}}},
{"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":4},{"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}]},{"type":"array","prefixItems":[{"type":"integer"},{"type":"null"}],"items":{"type":"boolean"},"minItems":1,"maxItems":5},{"type":"array","prefixItems":[{"const":1}],"items":False},
{"$schema":"http://json-schema.org/draft-07/schema#","items":[{"type":"integer"}],"additionalItems":{"type":"string"},"type":"array"},
{"type":"array","items":{"enum":["a","b","c"]},"uniqueItems":True},{"type":"array","items":{"type":"string"},"uniqueItems":True,"minItems":1},{"type":"array","items":{"type":"integer"},"uniqueItems":True},{"type":"array","uniqueItems":True},{"type":"array","items":{"type":"object","properties":{"name":{"type":"string"},"n":{"type":"integer"}},"required":["name"]},"uniqueItems":True,"minItems":2},
{"type":"array","items":{"type":"integer"},"contains":{"const":5}},{"type":"array","contains":{"type":"string"},"items":{"type":["string","integer"]},"minContains":2,"maxContains":3},{"type":"array","contains":{"const":1},"maxContains":1,"items":{"type":"integer"},"minItems":2,"maxItems":5},
{"anyOf":[{"type":"integer"},{"type":"string"}],"maxLength":3,"maximum":5},{"oneOf":[{"type":"integer"},{"type":"number"}]},{"oneOf":[{"type":"string","maxLength":5},{"type":"string","minLength":3}]},
{"oneOf":[{"properties":{"k":{"const":"a"},"x":{"type":"integer"}},"required":["k"]},{"properties":{"k":{"const":"b"},"y":{"type":"string"}},"required":["k"]}],"type":"object"},
{"oneOf":[{"required":["a"]},{"required":["b"]}],"properties":{"a":{"type":"integer"},"b":{"type":"integer"}},"type":"object"},
{"allOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"b":{"type":"string"},"a":{"minimum":5}},"required":["b"]}],"type":"object"},
{"type":"object","properties":{"t":{"enum":["x","y"]},"v":{}},"required":["t","v"],"if":{"properties":{"t":{"const":"x"}}},"then":{"properties":{"v":{"type":"integer"}}},"else":{"properties":{"v":{"type":"string"}}}},
{"$defs":{"n":{"type":"object","properties":{"v":{"type":"integer"},"next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["v","next"],"additionalProperties":False}},"$ref":"#/$defs/n"},
{"$id":"http://x/tree","$dynamicAnchor":"node","type":"object","properties":{"data":True,"children":{"type":"array","items":{"$dynamicRef":"#node"}}}},
{"allOf":[{"properties":{"foo":{"type":"string"}}}],"properties":{"bar":{"type":"integer"}},"unevaluatedProperties":False,"type":"object"},
{"type":"array","prefixItems":[{"type":"string"}],"unevaluatedItems":{"type":"integer"}},
{"type":["integer","null"],"minimum":3},{"type":["string","integer"],"maxLength":2},
{"not":{"required":["a"]},"type":"object"},{"not":{"anyOf":[{"type":"string"},{"type":"object"},{"type":"array"}]}},
{"type":"object","properties":{"a":{"type":"string","minLength":1,"maxLength":100,"description":"x"},"é\"\\":{"type":"string"}},"required":["a","é\"\\"]},
{"type":"number","minimum":0.1,"maximum":0.3},{"type":"number","minimum":-180,"maximum":180},{"type":"integer","exclusiveMinimum":0},{"type":"number","exclusiveMinimum":0},{"type":"integer","minimum":0,"maximum":65535},
{"type":"array","items":{"type":"array","items":{"type":"number"},"minItems":2,"maxItems":2},"maxItems":3},
{"type":"string","pattern":"^(\\([0-9]{3}\\))?[0-9]{3}-[0-9]{4}$"},{"type":"string","pattern":"\\S"},{"type":"string","pattern":"^\\S+@\\S+$"},{"type":"string","pattern":"[A-Z]","maxLength":300},

]
