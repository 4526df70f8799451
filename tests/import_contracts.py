"""An import-linter contract that is an allow-list: some modules import these packages, each other, and nothing else."""

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class AllowListContract(Contract):
    """`source_modules` with all below them; of the standard library everything is allowed."""

    source_modules = fields.SetField(subfield=fields.ModuleExpressionField())
    allowed_modules = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        named = {each.expression for each in self.source_modules}  # type: ignore[attr-defined]
        if unknown := named - graph.modules:
            raise ValueError(f"there are no modules {', '.join(sorted(unknown))}")
        sources = named.union(*(graph.find_descendants(module) for module in named))
        allowed = sources | set(self.allowed_modules) | sys.stdlib_module_names  # type: ignore[arg-type, operator]
        broken = [
            f"{module} -> {imported}"
            for module in sorted(sources)
            for imported in sorted(graph.find_modules_directly_imported_by(module) - allowed)
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["broken"]:
            output.print_error(line, bold=False)
