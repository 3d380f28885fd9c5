"""JSON Schema to grammar rules: every keyword is enforced, or is an annotation, or the schema is refused.

    document   the schema's text, its subschemas by number, references resolved
    branch     what one alternative asks of a value, type by type
    expand     a set of subschemas that must all hold (or not hold), as alternatives
    admits     whether a value is one that a branch allows, for `enum` and `const`
    emit       alternatives as rules: `texts`, `numbers`, `objects`, `arrays`

What the rules accept is a subset of what is valid: they fix the order of properties and the white space, and where a
keyword cannot be put into rules as it is, they allow fewer values (`uniqueItems`: values in an order that shows that
no two are equal). They never allow a value that is not valid.
"""
