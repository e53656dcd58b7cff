// What our nodes say of their work, on the nodes: the page shows `ui.PreviewText` only for nodes of its own.
import { app } from "../../scripts/app.js"

const PREFIX = "TokenFlow", REPORT = "report", CONTROL = "control_after_generate"
const LINE = 13, LETTER = 6, MARGIN = 14, MOST_LINES = 7 // in pixels, of the page's small text

/** Writes what a node said into a text below its other widgets, which is neither saved nor sent to the server. */
function show(node, output) {
  if (!output?.text) return
  const text = [output.text].flat().join("\n")
  let widget = node.widgets?.find((widget) => widget.name === REPORT)
  if (!widget && !text) return
  if (!widget) {
    widget = app.widgets.STRING(node, REPORT, ["STRING", { multiline: true }], app).widget
    widget.serialize = false // not among the workflow's values, which are told by their places
    widget.options.serialize = false // nor among the prompt's inputs
    widget.options.read_only = true
    if (widget.element) widget.element.readOnly = true
  }
  widget.value = text
  widget.options.getMinHeight = () => MARGIN + LINE * Math.min(lines(text, node.size[0]), MOST_LINES)
  app.canvas?.setDirty(true, true)
}

/** About how many lines a text takes in a node of this width. */
function lines(text, width) {
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil((line.length * LETTER) / (width - 40))), 0)
}

/** Shows what is known of a graph's nodes: of a workflow that is opened again, or after Undo. */
function showAll(outputs) {
  if (!Object.keys(outputs ?? {}).length) return // as when the page starts, before there is a graph
  const root = app.rootGraph ?? app.graph
  for (const graph of [root, ...(root.subgraphs?.values() ?? [])])
    for (const node of graph.nodes)
      if (node.type.startsWith(PREFIX)) show(node, outputs[graph === root ? node.id : `${graph.id}:${node.id}`])
}

app.registerExtension({
  name: "TokenFlow.Report",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith(PREFIX)) return
    const onExecuted = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments)
      show(this, output)
    }
  },
  nodeCreated(node) {
    // A seed that changes with every run would have the node work anew, mostly for the same result.
    const control = node.comfyClass?.startsWith(PREFIX) && node.widgets?.find((widget) => widget.name === CONTROL)
    if (control) control.value = "fixed"
  },
  afterConfigureGraph: () => showAll(app.nodeOutputs),
  onNodeOutputsUpdated: showAll,
})
